"""Tests of service/api/jobs.py and service/jobs.py: the life of a job over HTTP."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from service.scopes import Scope
from service.states import State
from tests.service.api.identities import OTHER, token
from tests.service.api.world import running
from tests.service.store.ranks import SPEC, metrics

JOB_KEYS = [
    "id", "project", "name", "state", "reason", "message", "labels", "priority", "created_at", "started_at", "finished_at", "progress",
    "metrics", "world_size", "transitions", "attempts", "spec",
]  # fmt: skip


@pytest.fixture
def world(fresh):
    """Lists and counts are of this test's jobs alone."""
    return fresh


def test_a_submitted_job_has_the_public_shape(world):
    """201, where to find it, and every field of the contract."""
    answer = world.client.post("/v1/jobs", json=SPEC | {"labels": {"team": "vision"}})
    job = answer.json()

    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert list(job) == JOB_KEYS
    assert re.fullmatch(r"job_[0-9A-HJKMNP-TV-Z]{26}", job["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", job["created_at"])
    assert (job["state"], job["reason"], job["labels"]) == ("queued", "submitted", {"team": "vision"})
    assert job["progress"] == {"step": 0, "total_steps": None, "epoch": 0, "samples": 0}
    assert [(change["state"], change["reason"]) for change in job["transitions"]] == [("queued", "submitted")]
    assert (job["spec"]["epochs"], job["spec"]["optimizer"]["lr"]) == (10, 0.1)
    assert world.client.get(answer.headers["location"]).json() == job


def test_a_running_job_shows_attempts_progress_and_latest_metrics(world):
    """What a user looks at while it trains."""
    job_id = world.start()
    world.say(job_id, 0, metrics(1, 3, train_loss=1.5))
    job = world.client.get(f"/v1/jobs/{job_id}").json()

    assert (job["state"], job["metrics"], job["world_size"]) == ("running", {"train/loss": 1.5}, 2)
    assert job["progress"] == {"step": 3, "total_steps": 100, "epoch": 0.3, "samples": 24}
    assert [list(attempt) for attempt in job["attempts"]] == [["number", "reason", "started_at", "finished_at", "world_size"]]


def test_yaml_is_the_same_job(world):
    """A spec file can be sent as it is."""
    answer = world.client.post("/v1/jobs", content=yaml.safe_dump(SPEC), headers={"Content-Type": "application/yaml; charset=utf-8"})

    assert answer.status_code == 201
    assert answer.json()["spec"] == world.submit()["spec"]


def test_a_dry_run_answers_with_the_resolved_spec_and_stores_nothing(world):
    """Validation alone."""
    answer = world.client.post("/v1/jobs?dry_run=true", json=SPEC)

    assert answer.status_code == 200
    assert answer.json()["spec"]["model"]["args"] == {"stem": "small", "width": 64}
    assert world.client.get("/v1/jobs").json()["data"] == []


def test_every_problem_of_a_spec_is_named(world):
    """Key, value, expectation and remedy, all at once."""
    answer = world.client.post("/v1/jobs", json=SPEC | {"epoch": 3, "batch_size": 0})
    body = answer.json()

    assert (answer.status_code, body["code"], answer.headers["content-type"]) == (422, "invalid_spec", "application/problem+json")
    found = {error["loc"]: error for error in body["errors"]}
    assert found["batch_size"]["value"] == 0
    assert "greater than or equal to 1" in found["batch_size"]["expected"]
    assert found["epoch"]["remedy"] == "did you mean epochs?"


def test_a_checkpoint_to_start_from_must_be_there(world):
    """Known at submission, not after an hour in the queue."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    missing = world.client.post("/v1/jobs", json=SPEC | {"initialize_from": f"{job_id}/checkpoints/11"})
    present = world.client.post("/v1/jobs", json=SPEC | {"initialize_from": f"{job_id}/checkpoints/best"})

    assert (missing.status_code, missing.json()["errors"][0]["loc"]) == (422, "initialize_from")
    assert present.status_code == 201


def test_the_same_key_and_body_is_the_same_job(world):
    """A client that lost the answer asks again; another body under the key is refused; another key is another job."""
    send = lambda key, **changes: world.client.post("/v1/jobs", json=SPEC | changes, headers={"Idempotency-Key": key})  # noqa: E731
    first, again, other = send("k1"), send("k1"), send("k2")

    assert (first.status_code, again.status_code) == (201, 201)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert other.json()["id"] != first.json()["id"]
    reused = send("k1", seed=1)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    assert len(world.client.get("/v1/jobs").json()["data"]) == 2


def test_twins_at_once_are_one_job(world):
    """Twenty requests with one key at the same moment."""
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: world.client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"}), range(20)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


def test_a_key_is_known_after_a_restart(tmp_path):
    """The promise outlives the process."""
    with running(tmp_path) as world:
        first = world.client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).json()
    with running(tmp_path) as world:
        assert world.client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).json() == first


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
def test_a_key_that_is_none_is_refused(world, key):
    """Not silently ignored: the client believes to be safe."""
    answer = world.client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": key.encode("latin-1")})

    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, "header.idempotency-key")


def test_pages_hold_every_job_once_newest_first(world):
    """Also where jobs arrive while someone pages."""
    ids = [world.submit()["id"] for _ in range(5)]
    first = world.client.get("/v1/jobs?limit=2").json()
    world.submit()
    second = world.client.get(f"/v1/jobs?limit=2&after={first['next_cursor']}").json()
    third = world.client.get(f"/v1/jobs?limit=2&after={second['next_cursor']}").json()

    assert [job["id"] for page in (first, second, third) for job in page["data"]] == ids[::-1]
    assert [(page["has_more"], page["next_cursor"] is None) for page in (first, second, third)] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_jobs_are_found_by_a_part_of_their_name_or_id(world):
    """In capitals or not; what SQL reads as a pattern is only what it is."""
    ids = [world.submit(name=name)["id"] for name in ("Needle-100%", "needle-1000", "hay")]
    found = lambda words: [job["id"] for job in world.client.get("/v1/jobs", params={"search": words}).json()["data"]]  # noqa: E731

    assert found("nEEDLE-1") == [ids[1], ids[0]]
    assert found("100%") == [ids[0]]
    assert found(ids[2][-8:].lower()) == [ids[2]]
    assert found("nEEDLE_1") == []


def test_lists_are_filtered(world):
    """By states, repeated or with commas, and by labels."""
    plain, labelled = world.submit()["id"], world.submit(labels={"team": "a=b"})["id"]
    world.client.post(f"/v1/jobs/{plain}/cancel")
    ids = lambda query: [job["id"] for job in world.client.get(f"/v1/jobs?{query}").json()["data"]]  # noqa: E731

    assert ids("state=cancelled") == [plain]
    assert ids("state=cancelled,queued") == ids("state=cancelled&state=queued") == [labelled, plain]
    assert ids("label=team=a%3Db") == [labelled]
    assert ids("label=team=b") == []


def test_a_queued_job_is_cancelled_at_once(world):
    """Nothing runs, nothing to wait for; doing it again changes nothing."""
    job_id = world.submit()["id"]
    first, again = (world.client.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2))

    assert (first.status_code, first.json()["state"]) == (200, "cancelled")
    assert again.json() == first.json()


def test_a_live_job_is_cancelling_until_its_processes_are_gone(world):
    """202, and idempotent; the reconciler does the rest."""
    job_id = world.start()
    first, again = (world.client.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2))

    assert (first.status_code, first.json()["state"], first.json()["reason"]) == (202, "cancelling", "cancel_requested")
    assert (again.status_code, again.json()) == (202, first.json())


def test_a_job_that_has_ended_cannot_be_cancelled(world):
    """409: it is too late, and the client should know."""
    job_id = world.start()
    world.finish(job_id)
    answer = world.client.post(f"/v1/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json()["code"]) == (409, "job_already_ended")


def test_a_queued_job_is_paused_and_resumed_at_once(world):
    """It leaves the queue and comes back; doing either again changes nothing."""
    job_id = world.submit()["id"]
    for what, state in (("pause", "paused"), ("resume", "queued")):
        first, again = (world.client.post(f"/v1/jobs/{job_id}/{what}") for _ in range(2))

        assert (first.status_code, first.json()["state"], first.json()["reason"]) == (200, state, f"{what}_requested")
        assert again.json() == first.json()


def test_a_live_job_is_pausing_until_it_has_saved(world):
    """202, and idempotent; it cannot be resumed before it has come to rest."""
    job_id = world.start()
    first, again = (world.client.post(f"/v1/jobs/{job_id}/pause") for _ in range(2))
    too_early = world.client.post(f"/v1/jobs/{job_id}/resume")

    assert (first.status_code, first.json()["state"]) == (202, "pausing")
    assert (again.status_code, again.json()) == (202, first.json())
    assert (too_early.status_code, too_early.json()["code"]) == (409, "job_not_paused")


def test_a_job_that_has_ended_is_neither_paused_nor_resumed(world):
    """409: it is too late, and the client should know."""
    job_id = world.start()
    world.finish(job_id)
    answers = [world.client.post(f"/v1/jobs/{job_id}/{what}") for what in ("pause", "resume")]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(409, "job_already_ended"), (409, "job_not_paused")]


def _resize(world, job_id, workers):
    return world.client.post(f"/v1/jobs/{job_id}/resize", json={"workers": workers})


def test_a_queued_job_starts_with_the_number_that_was_asked_for(world):
    """200: nothing is to be done. It is what the spec says from now on."""
    job_id = world.submit()["id"]
    first, again = (_resize(world, job_id, 3) for _ in range(2))

    assert (first.status_code, first.json()["world_size"], first.json()["spec"]["resources"]["workers"]) == (200, 3, 3)
    assert again.json() == first.json()

    async def asked():
        return [(queued.need.min_workers, queued.need.max_workers) async for page in world.store.queue.pages(10) for queued in page]

    assert world.call(asked) == [(3, 3)]


def test_a_live_job_has_the_number_that_was_asked_for_later(world):
    """202, and idempotent; fewer at once, more when the scheduler says so. Asking for what it has takes an ask back."""
    job_id = world.start()
    fewer, more, as_it_is = (_resize(world, job_id, workers) for workers in (1, 4, 2))

    assert [answer.status_code for answer in (fewer, more, as_it_is)] == [202, 202, 200]
    assert [answer.json()["world_size"] for answer in (fewer, more, as_it_is)] == [2, 2, 2]
    assert [answer.json()["spec"]["resources"]["workers"] for answer in (fewer, more, as_it_is)] == [1, 4, 2]


def test_an_elastic_job_gets_another_upper_bound(world):
    """Its least number stays, and nobody may ask for less."""
    job_id = world.submit(resources={"workers": {"min": 2, "max": 8}})["id"]
    fewer, too_few = _resize(world, job_id, 3), _resize(world, job_id, 1)

    assert fewer.json()["spec"]["resources"]["workers"] == {"min": 2, "max": 3}
    assert (too_few.status_code, too_few.json()["code"]) == (422, "invalid_spec")
    assert "workers.min 2 is more than workers.max 1" in too_few.text


@pytest.mark.parametrize("ask", [{"workers": 0}, {"workers": "2"}, {"workers": 2, "min": 1}, {"workers": 4097}, {}, [], None])
def test_a_resize_to_nonsense_is_refused(world, ask):
    """One whole number, nothing more."""
    url, headers = f"/v1/jobs/{world.submit()['id']}/resize", {"Content-Type": "application/json"}
    answer = world.client.post(url, content=json.dumps(ask), headers=headers)

    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_a_resize_keeps_to_what_a_spec_may_say(world):
    """Each worker has a sample at least."""
    answer = _resize(world, world.submit(batch_size=8)["id"], 9)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")
    assert "batch_size 8 cannot be split over 9 workers" in answer.text


def test_a_job_that_has_ended_is_not_resized(world):
    """409: it is too late, and the client should know."""
    job_id = world.start()
    world.finish(job_id)
    answer = _resize(world, job_id, 3)

    assert (answer.status_code, answer.json()["code"]) == (409, "job_already_ended")


def test_an_edit_needs_the_edition_that_was_seen(world):
    """If-Match with the ETag; without one the last writer wins."""
    job = world.client.get(f"/v1/jobs/{world.submit(labels={'a': '1'})['id']}")
    url, etag = f"/v1/jobs/{job.json()['id']}", job.headers["etag"]
    first = world.client.patch(url, json={"priority": 5}, headers={"If-Match": etag})
    stale = world.client.patch(url, json={"priority": 6}, headers={"If-Match": etag})
    blind = world.client.patch(url, json={"labels": {"b": "2"}})

    assert (first.status_code, first.json()["priority"], first.json()["labels"]) == (200, 5, {"a": "1"})
    assert first.headers["etag"] != etag
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert (blind.status_code, blind.json()["priority"], blind.json()["labels"]) == (200, 5, {"b": "2"})


@pytest.mark.parametrize("change", [{"priority": "high"}, {"priority": 10**30}, {"state": "succeeded"}, {"labels": {"": "x"}}, [], None])
def test_an_edit_of_anything_else_is_refused(world, change):
    """Priority and labels, nothing more."""
    headers = {"Content-Type": "application/json"}
    answer = world.client.patch(f"/v1/jobs/{world.submit()['id']}", content=json.dumps(change), headers=headers)

    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_only_a_job_that_has_ended_can_be_deleted(world):
    """And its files go with it."""
    job_id = world.start()
    world.checkpoint(job_id, 1, seq=1)
    early = world.client.delete(f"/v1/jobs/{job_id}")
    world.finish(job_id, State.FAILED)
    late = world.client.delete(f"/v1/jobs/{job_id}")

    assert (early.status_code, early.json()["code"]) == (409, "job_not_ended")
    assert (late.status_code, late.content) == (204, b"")
    assert world.client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert not world.directory(job_id, 1).parents[1].exists()


def test_the_queue_tells_places_and_reasons(world):
    """Who is next, and what the others wait for."""
    late, urgent = world.submit()["id"], world.submit(priority=9)["id"]
    world.call(world.store.jobs.set_message, late, "waiting_for_room", "needs 2 CPUs")
    queue = world.client.get("/v1/queue").json()["data"]

    assert [(row["position"], row["id"]) for row in queue] == [(1, urgent), (2, late)]
    first = world.client.get("/v1/queue?limit=1").json()
    assert (first["data"], first["has_more"], first["next_cursor"]) == (queue[:1], True, "1")
    assert world.client.get("/v1/queue?limit=1&after=1").json() == {"data": queue[1:], "has_more": False, "next_cursor": None}
    assert (queue[1]["reason"], queue[1]["message"], queue[1]["workers"]) == ("waiting_for_room", "needs 2 CPUs; 2nd in line", 2)


def test_a_full_queue_refuses_politely(world):
    """Which limit, how much of it, and what to do; a request sent again for a job that is there is no new one."""
    (world.settings.home / "policy.toml").write_text('[[quotas]]\nlabel = "team"\nqueued_jobs = 1\n')
    headers = {"Idempotency-Key": "once"}
    first = world.client.post("/v1/jobs", json=SPEC | {"labels": {"team": "a"}}, headers=headers)
    again = world.client.post("/v1/jobs", json=SPEC | {"labels": {"team": "a"}}, headers=headers)
    second = world.client.post("/v1/jobs", json=SPEC | {"labels": {"team": "a"}})

    assert (first.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert (second.status_code, second.json()["code"]) == (403, "quota_exceeded")
    assert "1 jobs with label team=a are queued" in second.json()["detail"]
    assert world.submit(labels={"team": "b"})


def test_usage_is_shown_beside_the_limits(fresh):
    """To an admin all of it; to others the groups that their project has jobs in."""
    policy = '[[quotas]]\nlabel = "team"\nworkers = 8\n[[quotas]]\nby = "token"\nqueued_jobs = 9\n'
    (fresh.settings.home / "policy.toml").write_text(policy)
    theirs = token(fresh, Scope.READ, Scope.SUBMIT, project=OTHER)
    fresh.start(labels={"team": "a"})
    assert fresh.client.post("/v1/jobs", json=SPEC | {"labels": {"team": "b"}}, headers=theirs).status_code == 201

    everything = {(row["subject"], row["value"]): row for row in fresh.client.get("/v1/usage").json()["data"]}
    assert everything["team", "a"]["limits"] == {"workers": 8}
    assert (everything["team", "a"]["used"]["workers"], everything["team", "b"]["used"]["queued_jobs"]) == (2, 1)
    assert len(everything) == 4
    seen = [(row["by"], row["value"]) for row in fresh.client.get("/v1/usage", headers=theirs).json()["data"]]
    assert seen[0] == ("label", "b")
    assert [by for by, _ in seen] == ["label", "token"]


def test_the_catalogue_tells_names_and_arguments(world):
    """What a spec may name, without reading the source."""
    for path, name in (("models", "resnet18"), ("datasets", "synthetic"), ("norms", "sync_bn")):
        found = {row["name"]: row for row in world.client.get(f"/v1/{path}").json()["data"]}
        assert found[name]["summary"]
        assert found[name]["args"]["type"] == "object"
