"""Recovery in place, as a user meets it: the real controller, real training, real SIGKILL; the result equal in every bit.

Named moments; random ones are in test_random_kills.py.
"""

import asyncio
import functools
import json
import os
import re
import signal

import pytest

from service import stalling
from service.states import State
from tests.support import process_cluster
from tests.support.recoveries import assert_undisturbed, run_job
from worker.contract import checkpoint_name, checkpoints_directory

pytestmark = pytest.mark.ranks
LONG = 40


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the job leaves behind when nothing happens."""
    return run_job(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def undisturbed_long(tmp_path_factory):
    """The same with more steps."""
    return run_job(tmp_path_factory.mktemp("undisturbed-long"), steps=LONG)


def test_nothing_happens(undisturbed):
    """The job that the others are compared with."""
    assert undisturbed.recoveries() == []
    assert_undisturbed(undisturbed, undisturbed)


def _one_after_the_other(rank, moments):
    """Return wishes for a rank that dies at the first moment, its successor at the second, and so on."""
    return [{"rank": rank, "made_for": number, "moment": moment, "step": step} for number, (moment, step) in enumerate(moments, 1)]


EVERY_MOMENT = [
    ("build", 0), ("meet", 0), ("agree", 0), ("forward", 1), ("hand over", 0), ("backward", 2), ("under way", 2), ("before optimizer", 3),
    ("after optimizer", 4), ("copy", 0), ("publish", 0), ("evaluate", 0), ("recalibrate", 0), ("after recalibrate", 0), ("farewell", 0),
]  # fmt: skip


def test_rank_0_dies_at_every_moment(tmp_path, undisturbed):
    """The rank that reports and writes is killed, and its successor, and so on, fifteen times: the job ends as if nothing had happened."""
    left = run_job(tmp_path, _one_after_the_other(0, EVERY_MOMENT), retries={"recoveries": 20})

    assert_undisturbed(left, undisturbed)
    assert [data["ranks"] for data in left.recoveries()] == [[0]] * 15


def test_a_rank_that_does_not_write_dies_at_every_moment(tmp_path, undisturbed):
    """The same of another rank, which publishes nothing."""
    moments = [entry for entry in EVERY_MOMENT if entry[0] not in {"copy", "publish"}]
    left = run_job(tmp_path, _one_after_the_other(2, moments), retries={"recoveries": 20})

    assert_undisturbed(left, undisturbed)
    assert [data["ranks"] for data in left.recoveries()] == [[2]] * 13


def test_rank_0_dies_when_the_others_have_gone(tmp_path, undisturbed):
    """Its last words are on record by then: nobody is left who could say them again."""
    left = run_job(tmp_path, [{"rank": 0, "moment": "after farewell"}])

    assert_undisturbed(left, undisturbed)


def test_what_a_checkpoint_was_is_not_forgotten_with_the_rank_that_measured_it(tmp_path):
    """Rank 0 dies when the statistics are others already: its successor tells what was measured before, from those who heard it."""
    wishes = [{"rank": 0, "made_for": 1, "moment": "after recalibrate"}]
    left = run_job(tmp_path, wishes, source={"steps": 3, "recalibrate": "off", "resources": {"workers": 1}}, steps=0)

    assert left.job.state is State.SUCCEEDED, left.job.message
    assert [data["ranks"] for data in left.recoveries()] == [[0]]
    [(_, before)], [(_, after)] = left.series["before/val/loss"], left.series["val/loss"]
    source = tmp_path / checkpoints_directory(left.job.spec.initialize_from.split("/")[0]) / checkpoint_name(3)
    assert before == pytest.approx(json.loads((source / "manifest.json").read_text())["metrics"]["val/loss"], abs=1e-5)
    assert after != pytest.approx(before, abs=1e-4)


def test_two_of_three_ranks_die_in_the_same_step(tmp_path, undisturbed):
    """One survivor is enough."""
    left = run_job(tmp_path, [{"rank": 0, "moment": "forward", "step": 5}, {"rank": 1, "moment": "backward", "step": 5}])

    assert_undisturbed(left, undisturbed)
    assert {rank for data in left.recoveries() for rank in data["ranks"]} == {0, 1}


def test_the_last_one_with_state_dies_before_it_is_handed_over(tmp_path, undisturbed):
    """Only a checkpoint helps: the job starts again from its last one, out of another budget, and ends alike."""
    wishes = [
        {"rank": 0, "moment": "forward", "step": 4},
        {"rank": 1, "moment": "forward", "step": 4},
        {"rank": 2, "moment": "parked"},
    ]
    left = run_job(tmp_path, wishes)

    assert_undisturbed(left, undisturbed, is_restart_possible=True)
    assert State.QUEUED in left.states[1:]


async def _stop_one(world, job_id, gang, *, rank, after_step):
    """Stop a rank in mid-training as SIGSTOP does: its connections stay, it says nothing."""
    while (await world.store.jobs.get(job_id)).progress.step < after_step:
        await asyncio.sleep(0.01)
    os.kill(gang.ranks[rank].process.pid, signal.SIGSTOP)


def test_a_rank_that_stops_without_dying_is_named_and_replaced(tmp_path, undisturbed_long, monkeypatch):
    """Noticed because the others do not move on, and not before; the result is that of the undisturbed job, bit for bit."""
    monkeypatch.setattr(stalling, "PATIENCE_S", 2.0)
    monkeypatch.setattr(stalling, "SILENT_S", process_cluster.POLL_S + 1.0)
    left = run_job(tmp_path, disturb=functools.partial(_stop_one, rank=0, after_step=4), steps=LONG)

    assert_undisturbed(left, undisturbed_long)
    [recovery] = left.recoveries()
    assert recovery["ranks"] == [0]
    assert "rank 0 has not answered for" in recovery["message"]


def test_ranks_that_wait_for_each_other_in_different_places_are_named_and_meet_anew_once(tmp_path, monkeypatch):
    """Nobody is dead or busy, and yet nobody moves: told with the layers, and done again. What comes again is the fault of the code."""
    monkeypatch.setattr(stalling, "PATIENCE_S", 2.0)
    monkeypatch.setattr(stalling, "USUAL_TIMES", 0.0)
    monkeypatch.setattr(stalling, "STILL_S", 0.5)
    monkeypatch.setattr(process_cluster, "POLL_S", 1.0)
    left = run_job(tmp_path, [{"rank": 1, "moment": "wait for nobody", "step": 4}], timeout_s=180)
    [recovery] = left.recoveries()
    waits = r"waits in layer layer2\.0\.bn1 \((\S+) in \w+\) of step 5"
    places = rf"rank 0 {waits}; rank 1 {waits}; rank 2 {waits}"

    assert recovery["ranks"] == []
    assert (found := re.search(places, recovery["message"])), recovery["message"]
    assert found[1] == found[3] != found[2]
    assert (left.job.state, left.job.reason) == (State.FAILED, "task_error")
    assert re.search(f"the ranks wait for each other in different places: {places}", left.job.message)
    assert left.job.progress.step == 4


def test_a_rank_without_others_that_hangs_is_named_and_starts_again_from_its_last_checkpoint(tmp_path, monkeypatch):
    """Compared with how long its steps have taken so far; nobody else has the state."""
    monkeypatch.setattr(stalling, "ALONE_PATIENCE_S", 5.0)
    monkeypatch.setattr(process_cluster, "POLL_S", 1.0)
    left = run_job(tmp_path, [{"rank": 0, "moment": "hang", "step": 4}], resources={"workers": 1}, timeout_s=180)
    said = [event.data["message"] for event in left.events if event.data.get("state") == State.QUEUED and event.data["message"]]

    assert left.job.state is State.SUCCEEDED
    assert len(said) == 1
    assert re.fullmatch(r"rank 0 is at support/faults\.py:\d+ in _hang for \d+ s, in step 5; of the last .*; restart 1 of 3 .*", said[0])
    assert left.recoveries() == []
    assert [step for step, _ in left.series["train/loss"]] == list(range(1, 8))
