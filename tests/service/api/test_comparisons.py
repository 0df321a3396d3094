"""Tests of service/api/comparisons.py, service/comparisons.py and service/store/comparisons.py: comparisons over HTTP."""

import pytest

from service.scopes import Scope
from service.states import State
from tests.service.api.identities import OTHER, token
from tests.service.api.world import running
from tests.service.store.ranks import SPEC, metrics

ASK = {"spec": SPEC, "values": ["sync_bn", "group_norm"]}
ROW_KEYS = [
    "value", "job_id", "state", "message", "step", "total_steps", "train_loss", "validation", "samples_per_s", "sync_time_s",
    "sync_bytes", "health",
]  # fmt: skip


@pytest.fixture
def world(fresh):
    """Lists are of this test's comparisons alone."""
    return fresh


def _started(world, **changes):
    answer = world.client.post("/v1/comparisons", json=ASK | changes)
    assert answer.status_code == 201, answer.text
    return answer.json()


def _run(world, job_id):
    world.call(world.store.attempts.begin, job_id, "first", 2)
    world.call(world.store.jobs.transition, job_id, State.RUNNING, from_={State.STARTING}, reason="training")


def test_a_comparison_is_ordinary_jobs_and_a_table(world):
    """201, where to find it, one row for each value, and jobs that are found by their label."""
    answer = world.client.post("/v1/comparisons", json=ASK)
    comparison = answer.json()

    assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/comparisons/{comparison['id']}")
    assert list(comparison) == ["id", "state", "field", "created_at", "spec", "rows"]
    assert (comparison["state"], comparison["field"], comparison["spec"]) == ("queued", "norm.kind", SPEC)
    assert [list(row) for row in comparison["rows"]] == [ROW_KEYS] * 2
    assert [(row["value"], row["state"]) for row in comparison["rows"]] == [("sync_bn", "queued"), ("group_norm", "queued")]
    jobs = world.client.get(f"/v1/jobs?label=comparison={comparison['id']}").json()["data"]
    assert [job["id"] for job in jobs[::-1]] == [row["job_id"] for row in comparison["rows"]]
    assert [job["spec"]["norm"]["kind"] for job in jobs[::-1]] == ["sync_bn", "group_norm"]


def test_the_table_fills_while_the_jobs_run(world):
    """Figures of the one that runs; the one that was deleted is still a row; at the end the comparison has ended."""
    comparison = _started(world)
    first, second = (row["job_id"] for row in comparison["rows"])
    _run(world, first)
    world.say(
        first,
        0,
        metrics(1, 10, train_loss=1.5, val_accuracy=0.9, throughput_samples_per_s=10.0, sync_bytes=1360.0, sync_time_s=0.5),
        metrics(2, 20, train_loss=0.5, val_accuracy=0.8, throughput_samples_per_s=30.0),
    )
    world.checkpoint(first, 20, seq=3)
    world.client.post(f"/v1/jobs/{second}/cancel")
    world.client.delete(f"/v1/jobs/{second}")
    shown = world.client.get(f"/v1/comparisons/{comparison['id']}").json()
    world.finish(first)
    ended = world.client.get(f"/v1/comparisons/{comparison['id']}").json()

    row, gone = shown["rows"]
    assert (row["step"], row["train_loss"], row["samples_per_s"], row["sync_bytes"], row["sync_time_s"]) == (20, 0.5, 20.0, 1360.0, 0.5)
    assert row["validation"] == {"val/accuracy": {"last": 0.8, "best": 0.9}}
    assert row["health"]["status"] == "healthy"
    assert (gone["value"], gone["job_id"], gone["state"]) == ("group_norm", second, None)
    assert (shown["state"], ended["state"]) == ("running", "ended")


def test_one_key_is_one_comparison(world):
    """Sent twice, stored once; the same key for another request is refused; the key of a job is another key."""
    key = {"Idempotency-Key": "one"}
    world.client.post("/v1/jobs", json=SPEC, headers=key)
    first, again = (world.client.post("/v1/comparisons", json=ASK, headers=key) for _ in range(2))
    other = world.client.post("/v1/comparisons", json=ASK | {"field": "seed", "values": [1, 2]}, headers=key)

    assert (first.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(world.client.get("/v1/jobs").json()["data"]) == 3


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"values": ["sync_bn"]}, "values"),
        ({"values": ["sync_bn", "sync_bn"]}, ""),
        ({"values": ["sync_bn", "nosuch"]}, "values.1:norm.kind"),
        ({"spec": {**SPEC, "batch_size": 0}}, "spec.batch_size"),
        ({"field": "norm..kind"}, "field"),
        ({"spec": 3}, "spec"),
        ({"kinds": []}, "kinds"),
        ({"spec": {**SPEC, "initialize_from": "job_" + "0" * 26 + "/checkpoints/3"}}, "initialize_from"),
    ],
)
def test_a_comparison_that_cannot_be_run_stores_nothing(world, change, place):
    """422 and the place; not one of the jobs is there."""
    answer = world.client.post("/v1/comparisons", json=ASK | change)

    assert (answer.status_code, [error["loc"] for error in answer.json()["errors"]]) == (422, [place])
    assert world.client.get("/v1/jobs").json()["data"] == []


def test_a_comparison_is_only_checked_where_that_is_asked(world):
    """Every spec as it would run, what to think twice about once, what is wrong in the same words; nothing is stored."""
    small = SPEC | {"batch_size": 2}
    checked = world.client.post("/v1/comparisons?dry_run=true", json={"spec": small, "values": ["sync_bn", "batch_norm"]})
    refused = world.client.post("/v1/comparisons?dry_run=true", json=ASK | {"values": ["sync_bn", "nosuch"]})
    too_few = world.client.post("/v1/comparisons?dry_run=true", json=ASK | {"values": ["sync_bn"]})

    assert checked.status_code == 200
    assert [spec["norm"]["kind"] for spec in checked.json()["specs"]] == ["sync_bn", "batch_norm"]
    assert len(checked.json()["warnings"]) == len(set(checked.json()["warnings"])) > 0
    assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, "values.1:norm.kind")
    assert (too_few.json()["errors"][0]["loc"], too_few.json()["errors"][0]["expected"]) == ("values", "at least 2 items")
    assert [world.client.get(path).json()["data"] for path in ("/v1/jobs", "/v1/comparisons")] == [[], []]


def test_a_quota_holds_for_all_jobs_of_a_comparison_together(tmp_path):
    """Two places are left and three jobs ask: none is stored."""
    (tmp_path / "policy.toml").write_text('[[quotas]]\nlabel = "team"\nqueued_jobs = 2\n')
    spec = SPEC | {"labels": {"team": "vision"}}
    with running(tmp_path) as world:
        refused = world.client.post("/v1/comparisons", json={"spec": spec, "field": "seed", "values": [1, 2, 3]})
        accepted = world.client.post("/v1/comparisons", json={"spec": spec, "field": "seed", "values": [1, 2]})

    assert (refused.status_code, refused.json()["code"]) == (403, "quota_exceeded")
    assert accepted.status_code == 201


def test_lists_are_paged_newest_first(world):
    """Three comparisons, two to a page."""
    ids = [_started(world)["id"] for _ in range(3)]
    first = world.client.get("/v1/comparisons?limit=2").json()
    second = world.client.get(f"/v1/comparisons?limit=2&after={first['next_cursor']}").json()

    assert [one["id"] for one in first["data"] + second["data"]] == ids[::-1]
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
    assert [one["value"] for one in first["data"][0]["variants"]] == ["sync_bn", "group_norm"]


def test_only_a_comparison_that_has_ended_is_deleted_and_its_jobs_stay(world):
    """409 while a job waits; then 204, and 404."""
    comparison = _started(world)
    path = f"/v1/comparisons/{comparison['id']}"
    early = world.client.delete(path)
    for row in comparison["rows"]:
        world.client.post(f"/v1/jobs/{row['job_id']}/cancel")
    answers = [world.client.delete(path), world.client.get(path), world.client.delete(path)]

    assert (early.status_code, early.json()["code"]) == (409, "comparison_not_ended")
    assert [answer.status_code for answer in answers] == [204, 404, 404]
    assert answers[1].json()["code"] == "comparison_not_found"
    assert len(world.client.get("/v1/jobs").json()["data"]) == 2
    assert world.client.get("/v1/comparisons/nonsense").json()["code"] == "comparison_not_found"


def test_a_comparison_and_its_jobs_belong_to_the_project_that_asked(world):
    """Another project sees neither, may use the same key, and an admin sees both."""
    mine, theirs = (token(world, Scope.READ, Scope.SUBMIT, project=project) for project in ("default", OTHER))
    key = {"Idempotency-Key": "one"}
    first, second = (world.client.post("/v1/comparisons", json=ASK, headers=who | key).json()["id"] for who in (mine, theirs))
    listed = [[one["id"] for one in world.client.get("/v1/comparisons", headers=who).json()["data"]] for who in (mine, theirs, {})]
    codes = [getattr(world.client, method)(f"/v1/comparisons/{first}", headers=theirs).json()["code"] for method in ("get", "delete")]

    assert listed == [[first], [second], [second, first]]
    assert codes == ["comparison_not_found", "comparison_not_found"]
    assert len(world.client.get("/v1/jobs", headers=theirs).json()["data"]) == 2


def test_every_variant_is_held_to_what_the_token_may_run(world):
    """User code in one of two values: refused without the scope `code`, and nothing is stored. A reader may not compare at all."""
    submitter, reader = token(world, Scope.READ, Scope.SUBMIT), token(world, Scope.READ)
    ask = {"spec": SPEC, "field": "model", "values": [{"name": "resnet18"}, {"name": "code:pack.module:build"}]}
    answers = [
        world.client.post("/v1/comparisons", json=ask, headers=submitter),
        world.client.post("/v1/comparisons", json=ASK, headers=reader),
    ]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(403, "scope_missing")] * 2
    assert world.client.get("/v1/jobs").json()["data"] == []


def test_a_job_whose_norm_is_to_be_chosen_waits_and_says_so(world):
    """In the answer to its submission, and in the queue."""
    job = world.submit(norm={"kind": "auto"})
    [queued] = world.client.get("/v1/queue").json()["data"]

    assert (job["state"], job["reason"], job["spec"]["norm"]["kind"]) == ("queued", "choosing_norm", "auto")
    assert (queued["id"], queued["reason"]) == (job["id"], "choosing_norm")
    assert queued["message"].startswith("waits for short trials to choose norm.kind")
