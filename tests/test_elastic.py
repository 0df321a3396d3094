"""Elastic jobs, as a user meets them: the real controller, real training, real SIGKILL; the losses are those of the undisturbed run."""

import asyncio
import functools
import os
import signal

import pytest

from service import jobs
from service.states import State
from tests.support.gates import Gates
from tests.support.recoveries import run_job
from worker.contract import EventType

pytestmark = pytest.mark.ranks
STEPS = 16
GATES = (4, 8, 12)
FP64 = {"precision": "fp64", "steps": STEPS, "recalibrate": "off", "checkpoint": {"every_steps": 5}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the job leaves behind on two ranks from its first step to its last."""
    return run_job(tmp_path_factory.mktemp("undisturbed"), resources={"workers": 2}, **FP64)


def assert_no_seam(left, undisturbed):
    """Every step on record once and in order, with the loss of the undisturbed run; the same for what is evaluated and for the state."""
    assert left.job.state is State.SUCCEEDED, f"{left.job.reason}: {left.job.message}"
    trained = [event.data["step"] for event in left.events if event.type is EventType.METRICS and "train/loss" in event.data["values"]]
    assert trained == list(range(1, STEPS + 1))
    for name in ("train/loss", "val/loss"):
        assert [step for step, _ in left.series[name]] == [step for step, _ in undisturbed.series[name]]
        assert [value for _, value in left.series[name]] == pytest.approx([value for _, value in undisturbed.series[name]], abs=1e-9)
    assert left.tensors.keys() == undisturbed.tensors.keys()
    assert max((left.tensors[name].double() - tensor.double()).abs().max() for name, tensor in undisturbed.tensors.items()) < 1e-9
    assert [event.seq for event in left.events] == list(range(1, len(left.events) + 1))


def resizes(left):
    """The old and the new world size, and why, of every resize."""
    data = [event.data for event in left.events if event.type is EventType.RESIZE]
    return [(one["old_world_size"], one["new_world_size"], one["why"]) for one in data]


async def _at_gate(world, job_id, gang, gate):
    """Wait until all ranks have come to a gate, in a group of their own."""
    async with asyncio.timeout(180):
        while True:
            job = await world.store.jobs.get(job_id)
            if job.state is State.RUNNING and job.progress.step == gate and len(gang.places) == job.world_size and not gang.is_torn:
                return
            await asyncio.sleep(0.01)


async def _trains_on(world, job_id, gang, workers):
    """Wait until a job trains on so many workers."""
    async with asyncio.timeout(180):
        while True:
            job = await world.store.jobs.get(job_id)
            if job.world_size == workers and job.state is State.RUNNING and len(gang.places) == workers and not gang.is_torn:
                return
            await asyncio.sleep(0.01)


async def _ask(world, job_id, gang, *, numbers):
    """Ask for one number of workers at each gate."""
    gates = Gates(world.storage, GATES)
    for gate, workers in zip(GATES, numbers, strict=True):
        await _at_gate(world, job_id, gang, gate)
        await jobs.resize(world.store, job_id, workers)
        await _trains_on(world, job_id, gang, workers)
        gates.open(gate)


def test_a_job_grows_and_shrinks_as_asked(tmp_path, undisturbed):
    """2, 3, 1, 2 workers in one run of 16 steps; the loss curve has no seam."""
    left = run_job(tmp_path, disturb=functools.partial(_ask, numbers=(3, 1, 2)), gates=GATES, resources={"workers": 2}, **FP64)

    assert_no_seam(left, undisturbed)
    assert resizes(left) == [(2, 3, "asked"), (3, 1, "asked"), (1, 2, "asked")]
    first = next(event for event in left.events if event.type is EventType.RESIZE)
    assert first.data["samples_per_rank"] == [11, 10]
    assert first.data["message"] == "3 workers instead of 2, with 10 or 11 samples of a step each: as asked"
    assert (left.job.attempt, left.job.world_size, left.job.document["resources"]["workers"]) == (1, 2, 2)


async def _lose(world, job_id, gang, *, place):
    """Kill a rank for whose place there is no room any more; give the room back later."""
    gates = Gates(world.storage, GATES)
    await _at_gate(world, job_id, gang, GATES[0])
    gang.has_room, world.cluster.cpus = False, 2
    os.kill(gang.ranks[place].process.pid, signal.SIGKILL)
    # Nobody notices a death while all wait at a gate.
    gates.open(GATES[0])
    await _trains_on(world, job_id, gang, 2)
    await _at_gate(world, job_id, gang, GATES[1])
    gang.has_room, world.cluster.cpus = True, 3
    await _trains_on(world, job_id, gang, 3)
    gates.open(GATES[1])
    gates.open(GATES[2])


@pytest.mark.parametrize("place", [0, 1])
def test_a_job_goes_on_without_a_rank_and_grows_when_room_returns(tmp_path, undisturbed, place):
    """The rank that reports, or another one, is killed with its node: the others go on from the same step, and a new one joins later."""
    lose = functools.partial(_lose, place=place)
    left = run_job(tmp_path, disturb=lose, gates=GATES, cpus=3, resources={"workers": {"min": 2, "max": 8}}, **FP64)

    assert_no_seam(left, undisturbed)
    assert resizes(left) == [(3, 2, "node_lost"), (2, 3, "room_returned")]
    assert State.QUEUED not in left.states[1:], "no restart"
    assert left.job.attempt == 1
