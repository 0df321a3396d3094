"""Tests of recovery in place as the controller does it, on a real store and a cluster in memory."""

import asyncio

from service.states import State
from tests.support import fake_cluster
from tests.support.world import World, run
from worker.contract import EventType


def _point(step):
    return {"step": step, "total_steps": 9, "epoch": 0.1, "samples": 5, "values": {"train/loss": 1 / step}}


def _standing(phase, generation, step=0):
    return {"phase": phase, "generation": generation, "step": step}


async def _until(look, timeout_s=8.0):
    """Look again and again, within bounds, until it is so."""
    async with asyncio.timeout(timeout_s):
        while not await look():
            await asyncio.sleep(0.005)


async def _replaced(gang, number=1):
    """Wait until ranks were replaced so many times, and all were told where to meet."""

    async def is_so():
        return len(gang.replaced) >= number and not gang.is_torn

    await _until(is_so)


async def _states(world, job_id):
    return [transition.state for transition in (await world.store.jobs.transitions_of([job_id]))[job_id]]


async def _recoveries(world, job_id):
    return [event.data for event in await world.store.events.page(job_id, 0, 1000, types={EventType.RECOVERY})]


def test_a_dead_rank_is_replaced_and_the_job_goes_on(tmp_path):
    """Running, recovering, running; the event names the rank, the last step and the budget; everybody is told what is on record."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.say(EventType.METRICS, _point(1), [0])

            async def has_stepped():
                return (await world.store.jobs.get(job_id)).progress.step == 1

            await _until(has_stepped)
            gang.dead.add(1)
            gang.say(EventType.STATE, _standing("parked", 1, 1), [0])
            await _replaced(gang)
            assert (await world.store.jobs.get(job_id)).state is State.RECOVERING
            gang.say(EventType.STATE, _standing("training", 2, 1), [0])
            gang.say(EventType.STATE, _standing("starting", 2), [1])
            gang.say(EventType.STATE, _standing("training", 2, 1), [1])
            job = await world.until(job_id, State.RUNNING)
            assert job.reason == "recovered"
            assert job.message.startswith("going on with 2 workers after ")
            gang.end()
            await world.until(job_id, State.SUCCEEDED)

        assert gang.replaced == [(1,)]
        assert [(entry.generation, entry.reported) for entry in gang.assignments] == [(2, {"train/loss": 1})] * 2
        assert await _recoveries(world, job_id) == [
            {
                "generation": 2, "ranks": [1], "step": 1, "used": 1, "budget": 10,
                "message": "rank 1 lost at step 1; the others keep the state; recovery 1 of 10",
            }
        ]  # fmt: skip

    run(tmp_path, scenario)


def test_what_the_new_process_says_is_numbered_on(tmp_path):
    """Nothing that it says is taken for what the dead one said, and nothing is missing."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            for number in range(5):
                gang.say(EventType.LOG, {"stream": "stdout", "level": "info", "message": f"old {number}"}, [1])

            async def is_stored():
                return (await world.store.events.cursors(job_id, 1)).get(1, 0) == 6

            await _until(is_stored)
            gang.dead.add(1)
            await _replaced(gang)
            assert gang.assignments[1].after_seq == 6
            for number in range(5):
                gang.say(EventType.LOG, {"stream": "stdout", "level": "info", "message": f"new {number}"}, [1])
            gang.end()
            await world.until(job_id, State.SUCCEEDED)

        logs = await world.store.events.page(job_id, 0, 1000, types={EventType.LOG}, rank=1)
        said = [event.data["message"] for event in logs if event.type is EventType.LOG]
        assert said == [f"{which} {number}" for which in ("old", "new") for number in range(5)]

    run(tmp_path, scenario)


def test_a_second_death_in_a_recovery_is_recovered_too(tmp_path):
    """By the same rule, with the next generation; the job stays recovering until all are back."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.dead.add(1)
            await _replaced(gang)
            gang.dead.add(0)
            await _replaced(gang, 2)
            gang.say(EventType.STATE, _standing("training", 3))
            await world.until(job_id, State.RUNNING)

        assert gang.replaced == [(1,), (0,)]
        assert gang.generation == 3
        assert await _states(world, job_id) == [State.QUEUED, State.STARTING, State.RUNNING, State.RECOVERING, State.RUNNING]

    run(tmp_path, scenario)


def test_ranks_that_die_together_are_replaced_together(tmp_path):
    """One recovery for the ranks of one node."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(resources={"workers": 3})
            gang.dead |= {0, 2}
            await _replaced(gang)
            gang.say(EventType.STATE, _standing("training", 2))
            await world.until(job_id, State.RUNNING)

        assert gang.replaced == [(0, 2)]

    run(tmp_path, scenario)


def test_a_controller_killed_in_a_recovery_leaves_it_to_the_next(tmp_path):
    """Killed between the new process and its assignment: the next controller tells it, and makes no second one."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.is_cut_off = True
            gang.dead.add(1)

            async def is_made():
                return bool(gang.replaced)

            await _until(is_made)
        gang.is_cut_off = False
        assert gang.is_torn
        async with world.controller():
            await _replaced(gang, 2)
            gang.say(EventType.STATE, _standing("training", gang.generation))
            await world.until(job_id, State.RUNNING)

        assert gang.replaced == [(1,), ()]
        assert len(world.cluster.gangs) == 1

    run(tmp_path, scenario)


def test_a_new_process_that_has_nothing_to_say_is_told_at_once(tmp_path, monkeypatch):
    """Its first long poll is not waited for: until it is told where to meet, there is nothing to hear of it."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.is_cut_off = True
            gang.dead.add(1)

            async def is_made():
                return bool(gang.replaced)

            await _until(is_made)
        gang.is_cut_off = False
        monkeypatch.setattr(fake_cluster, "POLL_S", 600.0)
        async with world.controller():
            await _replaced(gang, 2)
            assert (await world.store.jobs.get(job_id)).state is State.RECOVERING

    run(tmp_path, scenario)


def test_a_rank_that_dies_while_the_controller_is_away_is_replaced_when_it_is_back(tmp_path):
    """The survivors wait."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
        gang.dead.add(0)
        gang.say(EventType.STATE, _standing("parked", 1), [1])
        async with world.controller():
            await _replaced(gang)
            gang.say(EventType.STATE, _standing("training", 2))
            await world.until(job_id, State.RUNNING)

        assert gang.replaced == [(0,)]

    run(tmp_path, scenario)


def test_a_place_that_does_not_come_back_restarts_the_job(tmp_path):
    """Its node is gone for good: a new gang, from the last checkpoint, on what is left of the cluster."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.has_room = False
            gang.dead.add(1)
            await world.train(job_id, attempt=2)

        assert gang.is_dissolved
        transitions = (await world.store.jobs.transitions_of([job_id]))[job_id]
        restart = next(entry for entry in transitions if entry.reason == "restart")
        assert "the place did not come back" in restart.message

    run(tmp_path, scenario)


def test_a_cancel_in_a_recovery_is_a_cancel(tmp_path):
    """No new process outlives it."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.dead.add(1)
            await _replaced(gang)
            await world.store.jobs.transition(job_id, State.CANCELLING, from_={State.RECOVERING}, reason="cancel_requested")
            world.store.changes.jobs.set()
            gang.end("stopped")
            await world.until(job_id, State.CANCELLED)

        assert gang.is_dissolved

    run(tmp_path, scenario)


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path):
    """Also when it shows in a recovery."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.dead.add(1)
            await _replaced(gang)
            gang.end("failed", {"code": "task_error", "message": "ValueError: no", "rank": 1, "retryable": False}, [1])
            job = await world.until(job_id, State.FAILED)

        assert (job.reason, job.message) == ("task_error", "ValueError: no")
        assert gang.replaced == [(1,)]

    run(tmp_path, scenario)


def test_a_pause_is_passed_on_and_gives_the_room_back(tmp_path):
    """Running, pausing, paused, and after the resume the next attempt; whoever was asked in a recovery is asked again after it."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.dead.add(1)
            await _replaced(gang)
            await world.store.jobs.transition(job_id, State.PAUSING, from_={State.RECOVERING}, reason="pause_requested")
            world.store.changes.jobs.set()

            async def is_asked():
                return gang.is_asked_to_pause

            await _until(is_asked)
            gang.end("paused")
            await world.until(job_id, State.PAUSED)
            assert gang.is_dissolved
            await world.store.jobs.transition(job_id, State.QUEUED, from_={State.PAUSED}, reason="resume_requested")
            world.store.changes.jobs.set()
            await world.train(job_id, attempt=2)

        attempts = await world.store.attempts.of(job_id)
        assert [attempt.reason for attempt in attempts] == ["submitted", "resume_requested"]

    run(tmp_path, scenario)
