"""Two controllers, as processes, on one PostgreSQL: one is stopped by SIGSTOP past its leases, the other takes over, the first goes on."""

import os
import signal

import psutil
import pytest

from tests.support.actor_host import ActorHost
from tests.support.killing import home_of, spec, until

TAKEN_OVER_S = 60.0
"""Bounds each wait; a lease runs out after 10 s."""


@pytest.fixture(name="pair")
def _pair(postgres, tmp_path):
    """Two homes on one database, one storage and one host of ranks."""
    shared = {"SYNCBN_DATABASE_URL": postgres.new_database(), "SYNCBN_STORAGE": str(tmp_path / "first" / "storage")}
    with (
        ActorHost(tmp_path) as host,
        home_of(tmp_path / "first", host, shared) as first,
        home_of(tmp_path / "second", host, shared) as second,
    ):
        yield first, second


def _is_stopped(pid):
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def _supervised(world):
    """Return the jobs that a controller looks after."""
    return world.client.cluster()["gangs"]


@pytest.mark.parametrize(
    ("point", "found"),
    [(("stop before", "begin recovery", 1), "is not held by"), (("stop within", "store events", 20), "supervisor_let_go")],
)
def test_a_controller_that_was_stopped_past_its_lease_finds_its_writes_refused(pair, point, found):
    """It was about to write, or had locks of the database.

    The other has adopted the gang meanwhile and mended it: one attempt, one recovery, every event once.
    """
    sleeper, heir = pair
    sleeper.start(point)
    until(lambda: sleeper.client.cluster()["is_connected"], TAKEN_OVER_S, "the first controller to reach the cluster", sleeper.home)
    heir.start()
    job_id = heir.client.submit(spec("mortal", steps=400))["id"]

    until(lambda: _is_stopped(sleeper.pid), TAKEN_OVER_S, f"the first controller to come to {point}", sleeper.home)
    until(lambda: job_id in _supervised(heir), TAKEN_OVER_S, "the second controller to take the job over", heir.home)
    until(lambda: heir.client.job(job_id)["reason"] == "recovered", TAKEN_OVER_S, "the recovery", heir.home)
    assert _is_stopped(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGCONT)
    until(lambda: found in sleeper.log, TAKEN_OVER_S, "the first controller to find its write refused", sleeper.home)
    until(lambda: _supervised(sleeper) == [], TAKEN_OVER_S, "it to let go of the job", sleeper.home)

    job = sleeper.ended(job_id, "succeeded", client=heir.client)
    recoveries = [event["data"] for event in sleeper.client.events(job_id) if event["type"] == "recovery"]
    assert [(one["ranks"], one["generation"]) for one in recoveries] == [([1], 2)]
    assert [attempt["reason"] for attempt in job["attempts"]] == ["submitted"]

    heir.end()
    following = sleeper.client.submit(spec("whole"))["id"]
    sleeper.ended(following, "succeeded")
