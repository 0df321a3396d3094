"""Tests of service/pausing.py, and of a controller that pauses what does not come to the end of its step."""

import asyncio

import pytest

from service import jobs, pausing, supervisor
from service.pausing import OTHER_S, STEP_S, is_unhurried, overdue
from service.stalling import SILENT_S, Heard
from service.states import State
from tests.support.world import World, manifest, run
from worker.contract import EventType, Reading

LONG = STEP_S + 12.0


def _heard(idle_s=1.0, usual_s=0.1, ago_s=1.0, *, is_excused=False):
    where = "mine/model.py:12 in forward"
    return Heard(ago_s, Reading(step=6, idle_s=idle_s, usual_s=usual_s, is_waiting=False, is_excused=is_excused, where=where))


BETWEEN = Heard(1.0, None)
SILENT = Heard(LONG, None)
HANGS = "rank 1 is at mine/model.py:12 in forward for 73 s, in step 7"
NO_STEP = f"the ranks did not come to the end of a step within {OTHER_S + 2:.0f} s"
CASES = {
    "steps come to their end": ([_heard(), _heard()], "training", LONG, ""),
    "one hangs, and was asked just now": ([_heard(), _heard(LONG)], "training", 5.0, ""),
    "one hangs": ([_heard(), _heard(LONG)], "training", LONG, HANGS),
    "steps take long here": ([_heard(), _heard(LONG, usual_s=5.0)], "training", LONG, ""),
    "the longest step of any rank counts": ([_heard(usual_s=5.0), _heard(LONG)], "training", LONG, ""),
    "one does not answer": ([_heard(), SILENT], "training", LONG, "rank 1 has not answered for 72 s"),
    "one does not answer since a while": ([_heard(), Heard(SILENT_S + 1, None)], "training", LONG, ""),
    "one does not answer since it was in a step": (
        [_heard(), _heard(40.0, ago_s=40.0)], "training", LONG, "rank 1 has not answered for 40 s"
    ),
    "it loads data, or compiles": ([_heard(), _heard(LONG, is_excused=True)], "training", LONG, ""),
    "even that takes too long": ([_heard(), _heard(OTHER_S, is_excused=True)], "training", OTHER_S + 2, NO_STEP),
    "a first step": ([BETWEEN, BETWEEN], "training", LONG, ""),
    "a first step that hangs": ([BETWEEN, BETWEEN], "training", OTHER_S + 2, NO_STEP),
    "an evaluation": ([BETWEEN, BETWEEN], "evaluating", OTHER_S + 2, ""),
    "the checkpoint of the pause": ([BETWEEN, BETWEEN], "finishing", OTHER_S + 2, ""),
    "an evaluation with one that does not answer": ([BETWEEN, SILENT], "evaluating", LONG, "rank 1 has not answered for 72 s"),
    "all were evaluating when they were heard last": ([SILENT], "evaluating", LONG, "rank 0 has not answered for 72 s"),
    "nobody is left": ([], "", LONG, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_how_long_a_pause_waits(case):
    """As long as its checkpoint may come, and not for a rank that hangs."""
    heard, phase, asked_s, expected = CASES[case]

    ranks = dict(enumerate(heard))
    assert ("" if is_unhurried(ranks, dict.fromkeys(ranks, phase)) else overdue(ranks, asked_s)) == expected


async def _saved(world, job_id, gang, step=5, trained=8):
    """Let the gang save at a step and train on, and wait until that is on record."""
    gang.say(EventType.CHECKPOINT, manifest(job_id, step, 0.5), [0])
    gang.say(EventType.METRICS, {"step": trained, "total_steps": 9, "epoch": 0.1, "samples": 5, "values": {"train/loss": 1.0}}, [0])
    world.publish(job_id, step, 0.5)
    async with asyncio.timeout(8):
        while (await world.store.jobs.get(job_id)).progress.step < trained:
            await asyncio.sleep(0.005)


@pytest.fixture(name="hurried")
def _hurried(monkeypatch):
    """Let pauses wait for two seconds, and not a minute."""
    for module in (pausing, supervisor):
        monkeypatch.setattr(module, "STEP_S", 2.0)


@pytest.mark.usefixtures("hurried")
def test_a_pause_does_not_wait_for_a_rank_that_hangs(tmp_path):
    """The job is paused, its processes are gone, its message says from where it goes on; resumed, it does."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            await _saved(world, job_id, gang)
            gang.readings[1] = Reading(step=8, idle_s=50.0, usual_s=0.01, is_waiting=False, where="mine.py:3 in forward")
            await jobs.pause(world.store, job_id)
            job = await world.until(job_id, State.PAUSED)
            assert gang.is_asked_to_pause
            assert gang.is_dissolved
            assert job.message.startswith("rank 1 is at mine.py:3 in forward for 5")
            assert job.message.endswith(
                " s, in step 9, so the pause did not wait for a checkpoint; every process is gone; it goes on from its checkpoint of step"
                " 5, and does the steps up to 8 again"
            )
            await jobs.resume(world.store, job_id)
            second = await world.train(job_id, attempt=2)
            assert second.assignments[0].resume == f"{job_id}/5"

    run(tmp_path, scenario)


@pytest.mark.usefixtures("hurried")
def test_a_pause_does_not_wait_for_ranks_that_do_not_answer(tmp_path):
    """Also where the controller has been started anew since, and has never heard them."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
        gang.is_silent = True
        async with world.controller():
            await jobs.pause(world.store, job_id)
            with pytest.raises(AssertionError, match="pausing"):
                await world.until(job_id, State.PAUSED, timeout_s=4)
            gang.is_silent = False  # so that its processes can be ended
            job = await world.until(job_id, State.PAUSED)
            assert job.message.startswith("the ranks could not be reached within 2 s, so the pause did not wait")
            assert gang.is_dissolved

    run(tmp_path, scenario)


def test_a_pause_does_not_wait_for_room_for_a_lost_rank(tmp_path):
    """It was waited for when the pause came. No restart is used: there may be none."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(retries={"restarts": 0})
            await _saved(world, job_id, gang)
            gang.is_room_awaited, gang.has_room = True, False
            gang.dead.add(1)
            await world.until(job_id, State.RECOVERING)
            async with asyncio.timeout(5):
                while not gang.needed:
                    await asyncio.sleep(0.005)
            await jobs.pause(world.store, job_id)
            job = await world.until(job_id, State.PAUSED)
            assert gang.is_dissolved
            assert job.message == (
                "rank 1 lost without a replacement (the place did not come back), so the pause did not wait for a checkpoint; every"
                " process is gone; it goes on from its checkpoint of step 5, and does the steps up to 8 again"
            )
        assert [attempt.reason for attempt in await world.store.attempts.of(job_id)] == ["submitted"]

    run(tmp_path, scenario)


def test_a_pause_of_an_elastic_job_is_saved_by_the_ranks_that_are_left(tmp_path):
    """They hold newer state than the last checkpoint, and may train without the lost one."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(resources={"workers": {"min": 1, "max": 2}})
            gang.is_room_awaited, gang.has_room = True, False
            world.cluster.cpus = 1
            await jobs.pause(world.store, job_id)
            gang.dead.add(1)
            async with asyncio.timeout(8):
                while gang.places != (0,) or gang.is_torn:
                    await asyncio.sleep(0.005)
            gang.say(EventType.CHECKPOINT, manifest(job_id, 9, 0.5), [0])
            world.publish(job_id, 9, 0.5)
            gang.end("paused")
            job = await world.until(job_id, State.PAUSED)
            assert job.message == "every process is gone; it goes on from its checkpoint of step 9"

    run(tmp_path, scenario)


@pytest.mark.usefixtures("hurried")
def test_a_pause_lets_an_evaluation_come_to_its_end_and_the_step_after_it(tmp_path, monkeypatch):
    """However long it took: what was waited before does not count against the step."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.say(EventType.STATE, {"phase": "evaluating", "generation": 1})
            await jobs.pause(world.store, job_id)
            with pytest.raises(AssertionError, match="pausing"):
                await world.until(job_id, State.PAUSED, timeout_s=3)
            gang.say(EventType.STATE, {"phase": "training", "generation": 1})
            await asyncio.sleep(0.2)
            assert (await world.store.jobs.get(job_id)).state is State.PAUSING
            job = await world.until(job_id, State.PAUSED)
            assert job.message.startswith("the ranks did not come to the end of a step within ")

    monkeypatch.setattr(pausing, "OTHER_S", 1.5)
    run(tmp_path, scenario)
