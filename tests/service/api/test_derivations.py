"""Jobs that are made of a checkpoint over HTTP: fork, recalibrate, export."""

import pytest

from service.scopes import Scope
from tests.service.api.identities import token
from tests.service.api.world import LAYERS
from worker.contract import parse_spec

ASKS = {
    "fork": ("/fork", {"step": "best"}),
    "recalibrate": ("/checkpoints/best/recalibrate", {"num_samples": 500}),
    "export": ("/checkpoints/best/export", {"formats": ["plain", "onnx"]}),
}


@pytest.fixture
def trained(world):
    """A job with two checkpoints, the first of which is the better."""
    job_id = world.start(labels={"team": "a"})
    world.checkpoint(job_id, 10, seq=1, accuracy=0.9, layers=LAYERS)
    world.checkpoint(job_id, 20, seq=2, accuracy=0.5, layers=LAYERS)
    return job_id


@pytest.mark.parametrize("what", ASKS)
def test_a_job_is_made_that_names_its_checkpoint_by_number(world, trained, what):
    """`best` is what it is when I ask; the answer is a job like that of a submission."""
    path, body = ASKS[what]
    answer = world.client.post(f"/v1/jobs/{trained}{path}", json=body)

    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["state"], made["labels"]) == ("queued", {"team": "a"})
    assert made["spec"]["initialize_from"] == f"{trained}/checkpoints/10"
    assert answer.headers["location"] == f"/v1/jobs/{made['id']}"
    assert parse_spec(made["spec"]).steps == (None if what == "fork" else 0)
    assert world.client.get(f"/v1/jobs/{made['id']}").json() == made


@pytest.mark.parametrize("what", ASKS)
def test_any_value_of_the_spec_can_be_another(world, trained, what):
    """By its dotted path; what does not hold together is refused like a spec."""
    path, body = ASKS[what]
    change = {"resources.workers": 1, "labels": {"team": "b"}}
    answer = world.client.post(f"/v1/jobs/{trained}{path}", json=body | {"set": change})
    assert (answer.json()["world_size"], answer.json()["labels"]) == (1, {"team": "b"})

    refused = world.client.post(f"/v1/jobs/{trained}{path}", json=body | {"set": {"optimizer.lrr": 1}})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_spec")
    assert refused.json()["errors"][0]["remedy"] == "did you mean lr?"


@pytest.mark.parametrize("what", ASKS)
def test_the_same_key_is_the_same_job_also_when_best_is_another_one_by_then(world, trained, what):
    """As for submissions; the key of another request is refused."""
    path, body = ASKS[what]
    ask = lambda body: world.client.post(f"/v1/jobs/{trained}{path}", json=body, headers={"Idempotency-Key": what + trained})  # noqa: E731
    first = ask(body)
    world.checkpoint(trained, 30, seq=3, accuracy=0.99, layers=LAYERS)
    again = ask(body)

    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert ask(body | {"set": {"seed": 1}}).json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("what", ASKS)
def test_a_checkpoint_that_is_not_there(world, what):
    """404, like everywhere."""
    path, body = ASKS[what]
    answer = world.client.post(f"/v1/jobs/{world.start()}{path}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")


def test_what_has_no_running_statistics_cannot_be_re_estimated(world):
    """409 says so at once, not a job that fails."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1, layers=[])
    answer = world.client.post(f"/v1/jobs/{job_id}/checkpoints/10/recalibrate", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_running_statistics")


@pytest.mark.parametrize(
    ("path", "body", "loc"),
    [
        ("/checkpoints/10/recalibrate", {"estimator": "median"}, "estimator"),
        ("/checkpoints/10/recalibrate", {"num_samples": 0}, "num_samples"),
        ("/checkpoints/10/export", {"formats": []}, "formats"),
        ("/checkpoints/10/export", {"formats": ["tflite"]}, "formats.0"),
        ("/fork", {"step": "newest"}, "step"),
        ("/fork", {"sett": {}}, "sett"),
        ("/fork", {"set": {"batch_size.x": 1}}, "set.batch_size.x"),
    ],
)
def test_a_wrong_ask_says_where(world, trained, path, body, loc):
    """In the four parts of every error."""
    answer = world.client.post(f"/v1/jobs/{trained}{path}", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, loc), answer.text


def test_code_of_the_users_own_is_run_again_only_by_who_may(world, monkeypatch):
    """A fork runs what its job ran: the scope `code` is needed for it again."""
    job_id = world.start(model={"name": "code:mine:build"})
    world.checkpoint(job_id, 10, seq=1, layers=LAYERS)
    statuses = [
        world.client.post(f"/v1/jobs/{job_id}/fork", json={}, headers=token(world, *scopes)).status_code
        for scopes in ((Scope.SUBMIT,), (Scope.SUBMIT, Scope.CODE))
    ]
    assert statuses == [403, 201]
