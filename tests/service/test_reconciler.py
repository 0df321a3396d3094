"""Tests of service/reconciler.py, on a real store and a cluster in memory."""

import asyncio

from service.api.cluster import ClusterShape
from service.states import State
from tests.support.world import World, run


def test_a_lost_cluster_is_connected_anew_and_its_jobs_go_on(tmp_path, monkeypatch):
    """The controller outlives its Ray: jobs whose gangs went with it restart from their last checkpoint."""
    monkeypatch.setattr("service.reconciler.LOSS_LOOK_S", 0.01)

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.is_silent = True
            world.cluster.gangs.clear()
            world.cluster.lost = True
            again = await world.cluster.gang(job_id, attempt=2)
            again.end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def test_the_cluster_is_shown_as_the_api_describes_it(tmp_path):
    """Connected, with a node, its room and a gang; and not yet."""

    async def scenario(world: World) -> None:
        async with world.controller() as reconciler:
            job_id, _ = await world.training()
            view = await reconciler.view()
            assert ClusterShape.model_validate(view).model_dump() == view
            assert (view["is_connected"], view["gangs"], len(view["nodes"])) == (True, [job_id], 1)
            reconciler._condition = "Ray is away"
            view = await reconciler.view()
            assert ClusterShape.model_validate(view).model_dump() == view
            assert (view["is_connected"], view["message"], view["room"]) == (False, "Ray is away", None)

    run(tmp_path, scenario)


def test_a_job_without_room_says_why_it_waits_and_starts_when_there_is_room(tmp_path):
    """The queue explains itself."""

    async def scenario(world: World) -> None:
        async with world.controller():
            first = await world.submit(0, resources={"workers": 6})
            gang = await world.cluster.gang(first)
            second = await world.submit(1, resources={"workers": 6})
            while not (job := await world.store.jobs.get(second)).message:
                await asyncio.sleep(0.005)
            assert (job.state, job.reason, job.message) == (State.QUEUED, "no_room", "needs 6 CPUs, 2 free")
            gang.end()
            await world.cluster.gang(second)

    run(tmp_path, scenario)


def test_a_job_that_waited_starts_for_the_reason_it_was_queued_for(tmp_path):
    """A restart that had to wait for room still counts as one."""

    async def scenario(world: World) -> None:
        async with world.controller():
            first = await world.submit(0, resources={"workers": 6})
            gang = await world.cluster.gang(first)
            second = await world.submit(1, resources={"workers": 6})
            while (await world.store.jobs.get(second)).reason != "no_room":
                await asyncio.sleep(0.005)
            gang.end()
            await world.cluster.gang(second)
            assert [attempt.reason for attempt in await world.store.attempts.of(second)] == ["submitted"]

    run(tmp_path, scenario)


def test_a_job_of_higher_priority_has_a_lower_one_paused_and_queued_again(tmp_path):
    """Where the operator wants it; the victim goes on when there is room for it."""

    async def scenario(world: World) -> None:
        world.policy.write_text("preempt = true")
        async with world.controller():
            low, gang = await world.training(0, resources={"workers": 6})
            urgent = await world.submit(1, resources={"workers": 6}, priority=5)
            await world.until(low, State.PAUSING)
            # What a pause does in the end: the ranks have saved, and are gone.
            await gang.dissolve()
            assert await world.store.jobs.transition(low, State.PAUSED, from_={State.PAUSING}, reason="paused")
            job = await world.until(low, State.QUEUED)
            assert job.reason in {"preempted", "no_room"}
            assert (await world.cluster.gang(urgent)).places == tuple(range(6))
            reasons = [change.reason for change in (await world.store.jobs.transitions_of([low]))[low]]
            assert reasons[-3:] == ["preempted", "paused", "preempted"]

    run(tmp_path, scenario)


def test_a_quota_changes_while_the_controller_runs(tmp_path):
    """The file is written, and the job starts."""

    async def scenario(world: World) -> None:
        world.policy.write_text('[[quotas]]\nlabel = "team"\nworkers = 1\n')
        async with world.controller() as controller:
            job_id = await world.submit(0, labels={"team": "a"})
            while (await world.store.jobs.get(job_id)).reason != "over_quota":
                await asyncio.sleep(0.005)
            assert "needs 2" in controller.waiting[job_id].message
            world.policy.write_text('[[quotas]]\nlabel = "team"\nworkers = 2\n# raised')
            await world.cluster.gang(job_id)

    run(tmp_path, scenario)


def test_one_far_behind_is_found_in_the_end(tmp_path, monkeypatch):
    """However many before it wait for a quota."""
    monkeypatch.setattr("service.planner.NEAR", 2)
    monkeypatch.setattr("service.planner.PAGE", 2)
    monkeypatch.setattr("service.planner.DEEP_S", 0.05)

    async def scenario(world: World) -> None:
        world.policy.write_text('[[quotas]]\nlabel = "team"\nworkers = 1\n')
        async with world.controller():
            for number in range(6):
                await world.submit(number, labels={"team": "a"})
            await world.cluster.gang(await world.submit(6))

    run(tmp_path, scenario)
