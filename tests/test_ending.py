"""Cancel and pause, as a user meets them: the real controller, real training; whatever the ranks do, nothing is left within bounds."""

import asyncio
import functools
import inspect
import os
import signal
import time

import pytest

from service import jobs, pausing
from service.states import State
from service.store.store import Store
from tests.support import faults
from tests.support.process_cluster import ProcessCluster, alive
from tests.support.recoveries import SPEC
from tests.support.world import World
from worker.contract import EventType

pytestmark = pytest.mark.ranks
END_S = 15.0


async def _trains(world, job_id, gang):
    del gang
    while (await world.store.jobs.get(job_id)).progress.step < 2:
        await asyncio.sleep(0.01)


async def _as_it_starts(world, job_id, gang):
    """Ask while the processes are given their assignments."""


async def _with_a_stopped_rank(world, job_id, gang):
    """Ask when a rank does not answer any more, and the others wait for it."""
    await _trains(world, job_id, gang)
    os.kill(gang.ranks[0].process.pid, signal.SIGSTOP)


async def _while_it_recovers(world, job_id, gang):
    """Ask when a rank was killed, and a new one is started in its place."""
    await _trains(world, job_id, gang)
    os.kill(gang.ranks[1].process.pid, signal.SIGKILL)
    await world.until(job_id, State.RECOVERING)


async def _at(world, job_id, gang, phase, generation=1):
    """Wait until a rank has said that it is in a phase of a generation, and a little longer."""
    del gang
    while True:
        said = [event.data for event in await world.store.events.page(job_id, 0, 10_000) if event.type is EventType.STATE]
        if any((data.get("phase"), data.get("generation", generation)) == (phase, generation) for data in said):
            return await asyncio.sleep(0.3)
        await asyncio.sleep(0.01)


async def _while_a_rank_does_not_come(world, job_id, gang):
    """Ask when a process was started and does not hear what it is told."""
    os.kill(gang.ranks[1].process.pid, signal.SIGSTOP)
    await world.until(job_id, State.STARTING)
    await asyncio.sleep(0.5)


async def _while_a_replacement_builds(world, job_id, gang):
    """Ask when the others wait for a new process that imports user code, or builds its data, for long."""
    await _while_it_recovers(world, job_id, gang)
    await asyncio.sleep(1.0)


def _rank_1_hangs(moment, made_for=1):
    return [{"rank": 1, "moment": moment, "made_for": made_for, "hangs": True}]


CASES = {
    "as it starts": (_as_it_starts, None, {}),
    "a rank does not come": (_while_a_rank_does_not_come, None, {}),
    "a rank imports or builds for long": (functools.partial(_at, phase="starting"), _rank_1_hangs("build"), {}),
    "a rank is stopped": (_with_a_stopped_rank, None, {}),
    "a recovery": (_while_it_recovers, None, {}),
    "a replacement builds for long": (_while_a_replacement_builds, _rank_1_hangs("build", made_for=2), {}),
    "an evaluation": (functools.partial(_at, phase="evaluating"), _rank_1_hangs("evaluate"), {}),
    "a recalibration": (functools.partial(_at, phase="recalibrating"), _rank_1_hangs("recalibrate"), {"steps": 3}),
    "the last checkpoint": (
        functools.partial(_at, phase="finishing"), [{"rank": 0, "moment": "publish", "hangs": True}], {"recalibrate": "off", "steps": 3}
    ),
}  # fmt: skip
"""What is done before the end is asked for, where ranks stand still, and what is different about the job."""
FORMING = ["as it starts", "a rank does not come", "a rank imports or builds for long"]


def _end(folder, disturb, wishes=None, change=None, *, ask=jobs.cancel, workers=2):
    """Run a job, ask for its end, and return it, the seconds that this took, and what was left of its processes."""
    cluster = ProcessCluster(None if wishes is None else (inspect.getfile(faults), "plant", wishes))

    async def scenario():
        async with await Store.open(f"sqlite:///{folder / 'test.db'}") as store:
            world = World(store, cluster, folder)
            async with world.controller():
                job_id = await world.submit(**SPEC | {"steps": 10**6, "resources": {"workers": workers}} | (change or {}))
                while (job_id, 1) not in cluster.gangs:
                    await asyncio.sleep(0.005)
                gang = cluster.gangs[job_id, 1]
                await disturb(world, job_id, gang)
                asked_at = time.monotonic()
                await ask(store, job_id)
                job = await world.until(job_id, State.CANCELLED if ask is jobs.cancel else State.PAUSED, timeout_s=END_S * 4)
                return job, time.monotonic() - asked_at, alive(gang)

    try:
        return asyncio.run(asyncio.wait_for(scenario(), 90))
    finally:
        cluster.close()


@pytest.mark.parametrize("case", CASES)
def test_a_cancelled_job_leaves_nothing_in_15_seconds(tmp_path, case):
    """At whatever it is, and whoever stands still there."""
    _, took_s, left = _end(tmp_path, *CASES[case])

    assert left == []
    assert took_s < END_S


@pytest.mark.parametrize("case", FORMING)
def test_a_job_that_has_not_begun_is_paused_in_15_seconds(tmp_path, case):
    """There is nothing to save, so nobody is waited for who does not come."""
    job, took_s, left = _end(tmp_path, *CASES[case], ask=jobs.pause)

    assert left == []
    assert took_s < END_S
    assert "it has no checkpoint and begins anew" in job.message or case == "as it starts"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pause_does_not_wait_for_a_rank_that_is_stopped(tmp_path, monkeypatch, workers):
    """Also where it is the only one. A pause waits for a minute and ten usual steps; here for a second and one."""
    monkeypatch.setattr(pausing, "STEP_S", 1.0)
    monkeypatch.setattr(pausing, "USUAL_TIMES", 1.0)
    job, _, left = _end(tmp_path, _with_a_stopped_rank, ask=jobs.pause, workers=workers)

    assert left == []
    assert job.message.startswith("rank 0 ")
    assert "so the pause did not wait for a checkpoint; every process is gone" in job.message
