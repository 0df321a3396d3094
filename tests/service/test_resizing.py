"""Tests of resizes as the controller does them, on a real store and a cluster in memory."""

import asyncio

from service import jobs
from service.resizing import resized
from service.retrying import Why
from service.states import State
from tests.support.world import SPEC, World, run
from worker.contract import EventType, parse_spec

ELASTIC = {"workers": {"min": 1, "max": 4}}


def _train(gang, places=None):
    """Let ranks say that they train, in the present group."""
    gang.say(EventType.STATE, {"phase": "training", "generation": gang.generation, "step": 0}, places)


async def _until(look):
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.005)


async def _resizes(world, job_id):
    events = await world.store.events.page(job_id, 0, 1000, types={EventType.RESIZE})
    return [(event.data["old_world_size"], event.data["new_world_size"], event.data["why"]) for event in events]


async def _training(world, **change):
    """Bring a job so far that every rank trains."""
    job_id, gang = await world.training(**change)
    _train(gang)
    return job_id, gang


def test_a_job_starts_with_what_there_is_room_for_and_grows_when_there_is_more(tmp_path):
    """At least `min` and at most `max`; whoever is queued goes first."""

    async def scenario(world: World) -> None:
        world.cluster.cpus = 3
        async with world.controller():
            job_id, gang = await _training(world, resources=ELASTIC)
            assert gang.places == (0, 1, 2)
            other = await world.submit(1, resources={"workers": 1})
            world.cluster.cpus = 4
            other_gang = await world.train(other)
            world.cluster.cpus = 5
            await _until(lambda: len(gang.places) == 4 and not gang.is_torn)
            assert not other_gang.is_dissolved
            assert (await world.store.jobs.get(job_id)).world_size == 4
            assert await _resizes(world, job_id) == [(3, 4, "room_returned")]
            assert [(told.rank, told.world_size, told.generation, told.begins) for told in gang.previews] == [(3, 4, 2, False)]
            assert [(told.rank, told.world_size, told.generation) for told in gang.assignments] == [(rank, 4, 2) for rank in range(4)]

    run(tmp_path, scenario)


def test_a_job_does_not_grow_again_at_once(tmp_path):
    """Not before `grow_every_s` is over, unless somebody asks."""

    async def scenario(world: World) -> None:
        world.policy.write_text("grow_every_s = 3600.0\n")
        world.cluster.cpus = 2
        async with world.controller():
            job_id, gang = await _training(world, resources=ELASTIC)
            world.cluster.cpus = 3
            await _until(lambda: len(gang.places) == 3 and not gang.is_torn)
            _train(gang)
            world.cluster.cpus = 5
            # The round that starts this one has looked at the other one too, and left it as it is.
            await world.train(await world.submit(1, resources={"workers": 1}))
            assert (await world.store.jobs.get(job_id)).resize_to is None
            assert len(gang.places) == 3
            await jobs.resize(world.store, job_id, 4)
            await _until(lambda: len(gang.places) == 4)

    run(tmp_path, scenario)


def test_without_room_for_a_lost_rank_the_others_go_on(tmp_path):
    """They are numbered anew, in order, and keep their places; no restart."""

    async def scenario(world: World) -> None:
        world.cluster.cpus = 3
        async with world.controller():
            job_id, gang = await _training(world, resources=ELASTIC)
            gang.has_room, world.cluster.cpus = False, 2
            gang.dead.add(0)
            await _until(lambda: gang.places == (1, 2) and gang.generation == 2 and not gang.is_torn)
            assert gang.needed == [False], "not waited for longer than it takes to see that there is no room"
            assert [(told.rank, told.world_size) for told in gang.assignments] == [(0, 2), (1, 2)]
            _train(gang)
            job = await world.until(job_id, State.RUNNING)
            assert (job.world_size, job.attempt) == (2, 1)
            assert await _resizes(world, job_id) == [(3, 2, "node_lost")]

    run(tmp_path, scenario)


def test_below_its_least_number_a_job_starts_again(tmp_path):
    """From its last checkpoint, as one with a fixed number does."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await _training(world, resources={"workers": {"min": 2, "max": 2}})
            gang.has_room = False
            gang.dead.add(0)
            await world.train(job_id, attempt=2)
            assert gang.needed == [True]
            assert await _resizes(world, job_id) == []

    run(tmp_path, scenario)


def test_a_pause_or_a_cancel_goes_before_a_resize(tmp_path):
    """Nobody is told to meet anew who is to end."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await _training(world)
            # Not before all train, so that the pause is there first.
            gang.say(EventType.STATE, {"phase": "evaluating", "generation": 1, "step": 0}, [1])
            await jobs.resize(world.store, job_id, 1)
            await jobs.pause(world.store, job_id)
            await _until(lambda: gang.is_asked_to_pause)
            _train(gang)
            gang.end("paused")
            await world.until(job_id, State.PAUSED)
            assert await _resizes(world, job_id) == []
            assert gang.generation == 1
            await jobs.resume(world.store, job_id)
            assert len((await world.train(job_id, attempt=2)).places) == 1

    run(tmp_path, scenario)


def test_a_controller_killed_in_a_resize_leaves_it_to_the_next(tmp_path):
    """Killed when it was stored how many ranks there are to be, and none was told: the next one ends who is too many."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await _training(world, resources={"workers": 3})
            gang.is_cut_off = True
            await jobs.resize(world.store, job_id, 2)

            async def is_stored():
                return (await world.store.jobs.get(job_id)).world_size == 2

            async with asyncio.timeout(10):
                while not await is_stored():
                    await asyncio.sleep(0.005)
            assert gang.places == (0, 1, 2)
        gang.is_cut_off = False
        async with world.controller():
            await _until(lambda: gang.places == (0, 1) and gang.generation == 2 and not gang.is_torn)
            _train(gang)
            await world.until(job_id, State.RUNNING)
        assert await _resizes(world, job_id) == [(3, 2, "asked")]

    run(tmp_path, scenario)


def test_without_room_after_all_a_job_trains_on_as_it_is(tmp_path):
    """Somebody else took it since the plan was made; it is tried again."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await _training(world)
            gang.has_room = False
            await jobs.resize(world.store, job_id, 3)

            async with asyncio.timeout(10):
                while (await world.store.jobs.get(job_id)).resize_to is None:
                    await asyncio.sleep(0.005)
                while (await world.store.jobs.get(job_id)).resize_to is not None:
                    await asyncio.sleep(0.005)
            assert (gang.places, gang.generation) == ((0, 1), 1)
            gang.has_room = True
            await _until(lambda: gang.places == (0, 1, 2))
            assert await _resizes(world, job_id) == [(2, 3, "asked")]

    run(tmp_path, scenario)


def test_the_event_says_how_many_samples_each_rank_has():
    """Shares differ by at most one."""
    spec = parse_spec(SPEC | {"batch_size": 12})

    assert resized(spec, 7, 4, 5, Why.ROOM_RETURNED) == {
        "step": 7, "old_world_size": 4, "new_world_size": 5, "samples_per_rank": [3, 2],
        "message": "5 workers instead of 4, with 2 or 3 samples of a step each: there is room",
    }  # fmt: skip
    assert resized(spec, 7, 5, 4, Why.NODE_LOST)["samples_per_rank"] == [3, 3]
