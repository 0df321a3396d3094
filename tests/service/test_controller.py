"""The controller as its operator meets it: real processes, real Ray, real signals."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from service import embedded
from service.client import Client, Conflict
from service.processes import end_marked
from tests.support.serving import Serving, is_alive, spec, until
from tests.support.unruly import unruly

pytestmark = pytest.mark.ray
STEPS = 150
END_S = 15
"""How long a job may take to leave nothing running, however its processes behave."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """One controller for the module; a test that kills it starts it again."""
    serving = Serving(tmp_path_factory.mktemp("home"))
    serving.start().close()
    yield serving
    serving.close()


@pytest.fixture
def client(serving):
    """A client of the running controller."""
    if serving.process.poll() is not None:
        serving.start().close()
    with Client(home=serving.home) as client:
        yield client


def _at_step(client, job_id, step):
    until(lambda: client.job(job_id)["progress"]["step"] >= step, 60, f"step {step} of {job_id}")


def _gapless(client, job_id):
    """Assert that the events count 1, 2, 3 ... and end with the one end; return them."""
    events = list(client.events(job_id))

    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events].count("end") == 1
    assert events[-1]["type"] == "end"
    return events


def _whole(client, job_id):
    """Wait for the end of a job; assert that it succeeded with every event and every step on record exactly once; return it."""
    job = client.wait(job_id, timeout_s=90)
    _gapless(client, job_id)
    steps = [point[0] for point in client.metrics(job_id, ["train/loss"])["series"][0]["points"]]

    assert job["state"] == "succeeded"
    assert steps == list(range(1, STEPS + 1))
    return job


def test_a_killed_controller_finds_its_job_misses_nothing_and_finishes_it(serving, client):
    """SIGKILL in mid-training: the ranks train on, and every step of every rank is on record exactly once."""
    job_id = client.submit(spec(STEPS))["id"]
    _at_step(client, job_id, 20)
    ranks = {process.pid for process in serving.ranks()}
    serving.kill()
    assert {process.pid for process in serving.ranks()} == ranks

    with serving.start() as again:
        job = _whole(again, job_id)

    assert job["state"] == "succeeded"
    assert len(job["attempts"]) == 1
    assert not serving.ranks()


def test_a_controller_killed_while_a_gang_forms_leaves_one_gang(serving, client):
    """Whatever was half made is ended before the next attempt begins."""
    job_id = client.submit(spec(10))["id"]
    until(lambda: client.job(job_id)["state"] == "starting", 30, "the attempt to begin")
    serving.kill()

    with serving.start() as again:
        job = again.wait(job_id, timeout_s=90)

    assert job["state"] == "succeeded"
    assert len(serving.ranks()) == 0


def _states(job):
    return [transition["state"] for transition in job["transitions"]]


def test_killed_ranks_are_replaced_and_no_step_is_lost(serving, client):
    """SIGKILL of one rank, then of the other, which is the older one by then: one attempt, every step on record once, nothing left."""
    job_id = client.submit(spec(STEPS))["id"]
    survivors = set()
    for step in (20, 60):
        _at_step(client, job_id, step)
        until(lambda: client.job(job_id)["state"] == "running" and len(serving.ranks()) == 2, 30, "both ranks")
        victim = min(serving.ranks(), key=lambda process: process.create_time())
        survivors = {process.pid for process in serving.ranks()} - {victim.pid}
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: client.job(job_id)["state"] == "recovering", 10, "the recovery")
        assert survivors <= {process.pid for process in serving.ranks()}
    job = _whole(client, job_id)

    assert _states(job) == ["queued", "starting", "running", "recovering", "running", "recovering", "running", "succeeded"]
    assert len(job["attempts"]) == 1
    recoveries = [event["data"] for event in client.events(job_id) if event["type"] == "recovery"]
    assert [(data["used"], data["generation"]) for data in recoveries] == [(1, 2), (2, 3)]
    assert sorted(rank for data in recoveries for rank in data["ranks"]) == [0, 1]
    assert not serving.ranks()


def test_a_job_whose_controller_and_rank_are_killed_together_recovers(serving, client):
    """The survivor waits, parked, for the next controller."""
    job_id = client.submit(spec(STEPS))["id"]
    _at_step(client, job_id, 10)
    serving.kill()
    os.kill(serving.ranks()[0].pid, signal.SIGKILL)
    with serving.start() as again:
        job = _whole(again, job_id)

    assert len(job["attempts"]) == 1
    assert "recovering" in _states(job)


def test_a_paused_job_gives_its_room_back_and_goes_on_from_the_very_step(serving, client):
    """No process is left while it is paused; after the resume every step is on record exactly once."""
    job_id = client.submit(spec(STEPS))["id"]
    _at_step(client, job_id, 10)
    assert client.pause(job_id)["state"] == "pausing"
    until(lambda: client.job(job_id)["state"] == "paused", END_S, "the pause")
    assert not serving.ranks()
    paused_at = client.job(job_id)["progress"]["step"]
    assert next(client.checkpoints(job_id))["step"] == paused_at
    client.resume(job_id)
    job = _whole(client, job_id)

    assert [attempt["reason"] for attempt in job["attempts"]] == ["submitted", "resume_requested"]
    steps = [
        event["data"]["step"] for event in client.events(job_id) if event["type"] == "metrics" and "train/loss" in event["data"]["values"]
    ]
    assert steps == list(range(1, STEPS + 1))


def test_a_killed_rank_without_recoveries_fails_the_job_by_name(serving, client):
    """SIGKILL of a rank of a job that allows no recovery: failed, rank_lost, the rank named, every process gone."""
    job_id = client.submit(spec(100_000, retries={"recoveries": 0}))["id"]
    _at_step(client, job_id, 5)
    ranks = serving.ranks()
    victim = max(ranks, key=lambda process: process.pid)
    os.kill(victim.pid, signal.SIGKILL)
    job = client.wait(job_id, timeout_s=40)

    assert (job["state"], job["reason"]) == ("failed", "rank_lost")
    assert "rank 1 is lost" in job["message"] or "rank 0 is lost" in job["message"]
    assert not any(is_alive(process.pid) for process in ranks)
    assert _gapless(client, job_id)[-1]["data"]["reason"] == "rank_lost"


def test_cancelled_means_that_the_processes_are_gone(serving, client):
    """At the moment the job says cancelled, no process of it is left."""
    job_id = client.submit(spec(100_000))["id"]
    _at_step(client, job_id, 5)
    ranks = serving.ranks()
    assert len(ranks) == 2
    assert client.cancel(job_id)["state"] == "cancelling"
    until(lambda: client.job(job_id)["state"] == "cancelled", END_S, "the cancel")

    assert not any(is_alive(process.pid) for process in ranks)
    with pytest.raises(Conflict):
        client.cancel(client.wait(client.submit(spec(1))["id"], timeout_s=60)["id"])


@pytest.mark.parametrize(("ask", "ends_as"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_ends_at_once_while_its_processes_start(serving, client, ask, ends_as):
    """Asked in the moment in which the attempt begins: no process is left, and the room is free."""
    room = until(lambda: client.cluster()["room"], 60, "the cluster")["free_cpus"]
    job_id = client.submit(spec(100_000))["id"]
    until(lambda: client.job(job_id)["state"] == "starting", 30, "the attempt to begin")
    getattr(client, ask)(job_id)
    until(lambda: client.job(job_id)["state"] == ends_as, END_S, "the end")

    assert not serving.ranks()
    until(lambda: client.cluster()["room"]["free_cpus"] == room, END_S, "its room")


def _unruly(client, tmp_path, *, keeps_lock, what="Unruly"):
    """Start a job whose code has started processes that do not want to end; return its id and all pids."""
    code = client.upload_code(Path(unruly.__file__).parent)["id"]
    model = {"name": f"code:unruly:{what}", "args": {"pids": str(tmp_path), "keeps_lock": keeps_lock}}
    job_id = client.submit(spec(100_000, model=model, code=code))["id"]
    files = until(
        lambda: len(found := [path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == 2 and found, 60, "the pids"
    )
    return job_id, [int(pid) for path in files for pid in path.read_text().split()]


def test_what_user_code_has_started_ends_with_its_ranks(client, tmp_path):
    """Children, what has detached itself, and programs in sessions of their own, all deaf to SIGTERM."""
    job_id, pids = _unruly(client, tmp_path, keeps_lock=False)
    assert all(is_alive(pid) for pid in pids)
    client.pause(job_id)
    until(lambda: client.job(job_id)["state"] == "paused", END_S, "the pause")

    assert [pid for pid in pids if is_alive(pid)] == []


@pytest.mark.parametrize("keeps_lock", [False, True])
@pytest.mark.parametrize(("ask", "ends_as"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_whose_code_does_not_come_up_ends_in_15_seconds(client, tmp_path, ask, ends_as, keeps_lock):
    """Its gang has not met, and is not waited for: there is nothing to save."""
    job_id, pids = _unruly(client, tmp_path, keeps_lock=keeps_lock, what="Late")
    getattr(client, ask)(job_id)
    until(lambda: client.job(job_id)["state"] == ends_as, END_S, f"the {ask}")

    assert [pid for pid in pids if is_alive(pid)] == []


def test_ranks_that_answer_nobody_are_cancelled_also_by_a_controller_that_never_heard_them(serving, client, tmp_path):
    """User code that never lets go of Python's lock keeps its rank from answering; the next controller knows it by name alone."""
    job_id, pids = _unruly(client, tmp_path, keeps_lock=True)
    serving.kill()
    with serving.start() as next_client:
        next_client.cancel(job_id)
        until(lambda: next_client.job(job_id)["state"] == "cancelled", END_S, "the cancel")

    assert [pid for pid in pids if is_alive(pid)] == []


def test_three_workers_train_like_one(client):
    """World-size invariance over the whole service: same losses at every step, up to rounding."""
    losses = {}
    for workers in (1, 3):
        resources = {"workers": workers, "cpus_per_worker": 0.5}
        job_id = client.submit(spec(8, precision="fp64", resources=resources))["id"]
        assert client.wait(job_id, timeout_s=90)["state"] == "succeeded"
        losses[workers] = [point[1] for point in client.metrics(job_id, ["train/loss"])["series"][0]["points"]]

    assert losses[1] == pytest.approx(losses[3], abs=1e-9)


def test_a_terminated_controller_ends_well_and_leaves_its_jobs_running(serving, client):
    """SIGTERM: exit status 0, and the ranks train on."""
    job_id = client.submit(spec(100_000))["id"]
    _at_step(client, job_id, 1)
    ranks = {process.pid for process in serving.ranks()}

    assert serving.terminate() == 0
    assert {process.pid for process in serving.ranks()} == ranks
    with serving.start() as again:
        again.cancel(job_id)
        assert again.wait(job_id, timeout_s=END_S)["state"] == "cancelled"


def test_after_a_power_cut_a_job_goes_on_from_its_last_checkpoint(serving, client):
    """Controller, Ray and ranks all killed at once: the next controller restarts the job, and no step is missing or counted twice."""
    job_id = client.submit(spec(STEPS))["id"]
    until(lambda: list(client.checkpoints(job_id)), 60, "a checkpoint")
    serving.kill()
    end_marked(embedded.MARKER, embedded._recorded(serving.home).session, 20)

    with serving.start() as again:
        job = _whole(again, job_id)

    assert job["state"] == "succeeded"
    assert [attempt["reason"] for attempt in job["attempts"]] == ["submitted", "restart"]


def test_a_controller_killed_again_and_again_ends_the_job_once_with_everything_on_record(serving, client):
    """Wherever SIGKILL falls, also while the controller is still connecting or adopting: one attempt, every step once, one end."""
    job_id = client.submit(spec(STEPS), idempotency_key="again-and-again")["id"]
    _at_step(client, job_id, 1)
    moments = random.Random(0)
    for _ in range(6):
        serving.kill()
        again = serving.start()
        time.sleep(moments.uniform(0, 2.5))
        assert again.submit(spec(STEPS), idempotency_key="again-and-again")["id"] == job_id
        again.close()
    with Client(home=serving.home) as last:
        job = _whole(last, job_id)

    assert job["state"] == "succeeded"
    assert len(job["attempts"]) == 1
    assert not serving.ranks()


def test_a_job_is_resized_while_it_trains(serving, client):
    """On real Ray: a rank is let go and its room is free; a new one joins later. Every step is on record once, in order."""
    job_id = client.submit(spec(10**6))["id"]
    _at_step(client, job_id, 5)
    room = client.cluster()["room"]["free_cpus"]
    for workers in (1, 2):
        assert client.resize(job_id, workers)["spec"]["resources"]["workers"] == workers
        until(lambda workers=workers: client.job(job_id)["world_size"] == workers, 60, f"{workers} workers")
        until(lambda workers=workers: len(serving.ranks()) == workers, 60, f"{workers} processes")
        until(lambda workers=workers: client.cluster()["room"]["free_cpus"] == room + 2 - workers, 60, "its room")
        _at_step(client, job_id, client.job(job_id)["progress"]["step"] + 5)
    client.cancel(job_id)
    client.wait(job_id, timeout_s=60)
    events = _gapless(client, job_id)
    resizes = [event["data"] for event in events if event["type"] == "resize"]
    steps = [event["data"]["step"] for event in events if event["type"] == "metrics" and "train/loss" in event["data"]["values"]]

    assert [(data["old_world_size"], data["new_world_size"], data["why"]) for data in resizes] == [(2, 1, "asked"), (1, 2, "asked")]
    assert steps == sorted(set(steps))
    assert not any(event["type"] == "recovery" for event in events)
    assert serving.ranks() == []
