"""Cancel, as a user meets it: the real controller, real training; whatever the ranks do, nothing is left in 15 seconds."""

import asyncio
import os
import signal
import time

import pytest

from service import jobs
from service.states import State
from service.store.store import Store
from tests.support.process_cluster import ProcessCluster, alive
from tests.support.recoveries import SPEC
from tests.support.world import World

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


async def _scenario(folder, cluster, disturb):
    async with await Store.open(f"sqlite:///{folder / 'test.db'}") as store:
        world = World(store, cluster, folder)
        async with world.controller():
            job_id = await world.submit(**SPEC | {"steps": 10**6, "resources": {"workers": 2}})
            while (job_id, 1) not in cluster.gangs:
                await asyncio.sleep(0.005)
            gang = cluster.gangs[job_id, 1]
            await disturb(world, job_id, gang)
            asked_at = time.monotonic()
            await jobs.cancel(store, job_id)
            await world.until(job_id, State.CANCELLED, timeout_s=END_S)
            assert alive(gang) == []
            assert time.monotonic() - asked_at < END_S


@pytest.mark.parametrize("disturb", [_as_it_starts, _with_a_stopped_rank, _while_it_recovers])
def test_a_cancelled_job_leaves_nothing_in_15_seconds(tmp_path, disturb):
    """Also with a rank that stops, and at moments in which processes are being made."""
    cluster = ProcessCluster()
    try:
        asyncio.run(asyncio.wait_for(_scenario(tmp_path, cluster, disturb), 90))
    finally:
        cluster.close()
