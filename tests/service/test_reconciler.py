"""Tests of service/reconciler.py, supervisor.py, watch.py and assignments.py, on a real store and a cluster in memory."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.cluster import ClusterError
from service.reconciler import Reconciler
from service.states import State
from service.store.records import Job
from service.store.store import Store
from tests.support.fake_cluster import FakeCluster
from worker.contract import EventType, checkpoint_name, checkpoints_directory, parse_spec

SPEC = {"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "resources": {"workers": 2}}
JOB_IDS = [f"job_{number:026d}" for number in range(10)]


class World:
    """A store and a cluster that outlive any number of controllers."""

    def __init__(self, store: Store, cluster: FakeCluster, storage: Path) -> None:
        self.store = store
        self.cluster = cluster
        self.storage = storage

    async def submit(self, number: int = 0, **change) -> str:
        """Store a queued job."""
        await self.store.jobs.create(JOB_IDS[number], parse_spec({**SPEC, **change}))
        return JOB_IDS[number]

    def publish(self, job_id: str, step: int, accuracy: float) -> None:
        """Put a checkpoint into the storage, as a rank does that dies before it is heard."""
        directory = self.storage / checkpoints_directory(job_id) / checkpoint_name(step)
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text(json.dumps(_manifest(job_id, step, accuracy)))

    @contextlib.asynccontextmanager
    async def controller(self) -> AsyncIterator[Reconciler]:
        """Run a controller inside the block; leaving it is like killing it, as far as jobs are concerned."""
        reconciler = Reconciler(self.cluster, self.storage)
        await reconciler.start(self.store)
        try:
            yield reconciler
        finally:
            await reconciler.stop()

    async def until(self, job_id: str, *states: State, timeout_s: float = 8.0) -> Job:
        """Wait until a job is in one of the states."""
        job = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while job is None or job.state not in states:
                    job = await self.store.jobs.get(job_id)
                    await asyncio.sleep(0.005)
        assert job is not None
        assert job.state in states, f"{job.state} {job.reason} {job.message}"
        return job


def run(tmp_path: Path, scenario) -> None:
    """Run a scenario with a fresh world."""

    async def main() -> None:
        async with await Store.open(f"sqlite:///{tmp_path / 'test.db'}") as store:
            await scenario(World(store, FakeCluster(), tmp_path))

    asyncio.run(main())


def test_a_job_goes_the_whole_way(tmp_path):
    """Queued, starting, running, succeeded, with one attempt and nothing left."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id = await world.submit()
            gang = await world.cluster.gang(job_id)
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
            gang.say(EventType.METRICS, {"step": 1, "total_steps": 9, "epoch": 0.1, "samples": 5, "values": {"train/loss": 2.0}}, [0])
            gang.end()
            job = await world.until(job_id, State.SUCCEEDED)

        states = [transition.state for transition in (await world.store.jobs.transitions_of([job_id]))[job_id]]
        assert states == [State.QUEUED, State.STARTING, State.RUNNING, State.SUCCEEDED]
        assert job.metrics["train/loss"] == 2.0
        assert gang.is_dissolved
        assert not any((tmp_path / ".gangs").iterdir())

    run(tmp_path, scenario)


def test_ranks_are_told_attempt_fence_and_marker(tmp_path):
    """The marker that proves the shared storage exists before a rank looks for it."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(await world.submit())

            assert [assignment.rank for assignment in gang.assignments] == [0, 1]
            assert all(assignment.fence == 1 and assignment.attempt == 1 for assignment in gang.assignments)
            assert (world.storage / gang.assignments[0].marker).is_file()

    run(tmp_path, scenario)


def test_a_lost_rank_fails_the_job_and_is_named(tmp_path):
    """Reason rank_lost, the rank in the message, every process gone."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            peer_lost = {"code": "peer_lost", "message": "connection closed", "rank": 0, "retryable": True}
            gang.end("failed", peer_lost, [0])
            gang.dead.add(1)
            job = await world.until(job_id, State.FAILED)

        assert job.reason == "rank_lost"
        assert "rank 1 is lost" in job.message
        assert gang.is_dissolved

    run(tmp_path, scenario)


def test_a_failure_in_user_code_is_the_reason(tmp_path):
    """What the rank said is what the user reads."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.end("failed", {"code": "task_error", "message": "ValueError: no", "rank": 1, "retryable": False}, [1])
            job = await world.until(job_id, State.FAILED)

        assert (job.reason, job.message) == ("task_error", "ValueError: no")

    run(tmp_path, scenario)


def test_a_controller_that_was_away_misses_nothing(tmp_path):
    """Events and the end of training that nobody watched are all there, once, in order."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
        for step in range(50):
            gang.say(EventType.LOG, {"stream": "stdout", "level": "info", "message": str(step)})
        gang.end()
        async with world.controller():
            await world.until(job_id, State.SUCCEEDED)

        logs = await world.store.events.page(job_id, 0, 1000, types={EventType.LOG}, rank=1)
        assert [event.data.get("message") for event in logs] == [str(step) for step in range(50)]
        assert len(world.cluster.gangs) == 1

    run(tmp_path, scenario)


def test_an_end_that_was_stored_but_not_concluded_is_concluded_by_the_next_controller(tmp_path):
    """A controller killed between storing the last word and the terminal state leaves a job that still ends."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
        job = await world.store.jobs.get(job_id)
        gang.end()
        for rank in range(2):
            events, _ = gang.buffers[rank].drain(0, 0)
            await world.store.events.ingest(job_id, 1, rank, events, job.fence)
        async with world.controller():
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def test_an_attempt_cut_off_while_forming_is_begun_anew(tmp_path):
    """No second gang for one job: what was half formed is dissolved before the next attempt."""

    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await world.store.attempts.begin(job_id, "submitted", 2)
        half = await world.cluster.form(job_id, 1, 2, cpus=1, gpus=0)
        async with world.controller():
            gang = await world.cluster.gang(job_id, attempt=2)

            assert half.is_dissolved
            assert gang.assignments[0].fence == 2

    run(tmp_path, scenario)


def test_a_gang_that_is_wholly_gone_restarts_within_its_budget(tmp_path):
    """After a restart of the machine, training goes on from the last checkpoint, as often as the spec allows."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit(retries={"restarts": 1}))
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
        gang.is_dissolved = True
        async with world.controller():
            second = await world.cluster.gang(job_id, attempt=2)
            second.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
        second.is_dissolved = True
        async with world.controller():
            job = await world.until(job_id, State.FAILED)

        assert job.reason == "rank_lost"
        assert [attempt.reason for attempt in await world.store.attempts.of(job_id)] == ["submitted", "restart"]

    run(tmp_path, scenario)


def test_a_lost_cluster_is_connected_anew_and_its_jobs_go_on(tmp_path, monkeypatch):
    """The controller outlives its Ray: jobs whose gangs went with it restart from their last checkpoint."""
    monkeypatch.setattr("service.reconciler.LOSS_LOOK_S", 0.01)

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
            gang.is_silent = True
            world.cluster.gangs.clear()
            world.cluster.lost = True
            again = await world.cluster.gang(job_id, attempt=2)
            again.end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def test_cancel_stops_the_ranks_and_ends_only_when_they_are_gone(tmp_path):
    """`cancelled` means that no process of the job is left."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
            await world.store.jobs.transition(job_id, State.CANCELLING, from_={State.RUNNING}, reason="cancel_requested")
            world.store.changes.jobs.set()
            while not gang.is_asked_to_stop:
                await asyncio.sleep(0.005)
            gang.is_silent = True
            gang.end("stopped")
            with pytest.raises(AssertionError, match="cancelling"):
                await world.until(job_id, State.CANCELLED, timeout_s=1)
            gang.is_silent = False
            await world.until(job_id, State.CANCELLED)

        assert gang.is_dissolved

    run(tmp_path, scenario)


def test_a_cancel_outlives_the_controller(tmp_path):
    """A cancel that was acknowledged happens, whoever is killed."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
        await world.store.jobs.transition(job_id, State.CANCELLING, from_={State.RUNNING}, reason="cancel_requested")
        gang.end("stopped")
        async with world.controller():
            await world.until(job_id, State.CANCELLED)

        assert gang.is_dissolved

    run(tmp_path, scenario)


def test_silence_is_no_reason_to_declare_anything(tmp_path):
    """A cluster that does not answer for a while changes no state."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            await world.until(job_id, State.RUNNING)
            gang.is_silent = True
            before = gang.drains
            while gang.drains < before + 4:
                await asyncio.sleep(0.01)
            assert (await world.store.jobs.get(job_id)).state is State.RUNNING
            gang.is_silent = False
            gang.end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def _manifest(job_id: str, step: int, accuracy: float) -> dict:
    """Return the data of a checkpoint event."""
    return {
        "job_id": job_id, "attempt": 1, "fence": 1, "step": step, "epoch": 1.0, "samples": 1, "world_size": 2,
        "created_at": "2026-01-01T00:00:00Z", "metrics": {"val/accuracy": accuracy}, "spec": {}, "spec_sha256": "0" * 64, "versions": {},
        "health": {"status": "healthy"}, "layers": [], "files": {},
    }  # fmt: skip


def test_an_attempt_starts_from_its_own_latest_checkpoint_or_from_the_one_that_the_spec_names(tmp_path):
    """A restart resumes from the storage, heard of or not; initialize_from starts from those weights; a plain job from nothing."""

    async def scenario(world: World) -> None:
        async with world.controller():
            first = await world.submit(0)
            gang = await world.cluster.gang(first)
            assert gang.assignments[0].resume is None
            gang.say(EventType.STATE, {"phase": "training"})
            world.publish(first, 12, 0.9)
            world.publish(first, 24, 0.8)
            await world.until(first, State.RUNNING)
        gang.is_dissolved = True
        async with world.controller():
            again = await world.cluster.gang(first, attempt=2)
            assert again.assignments[0].resume == f"{first}/24"

            second = await world.submit(1, initialize_from=f"{first}/checkpoints/best")
            assert (await world.cluster.gang(second)).assignments[0].resume == f"{first}/12"

            third = await world.submit(2, initialize_from=f"{first}/checkpoints/7")
            job = await world.until(third, State.FAILED)
            assert job.reason == "gang_start_failed"
            assert "checkpoint 7 of" in job.message

    run(tmp_path, scenario)


def test_the_catalogue_lists_what_is_in_the_storage_when_a_job_has_ended(tmp_path):
    """A rank killed between publishing and announcing, or between deleting and announcing, leaves no wrong list."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit())
            gang.say(EventType.STATE, {"phase": "training"})
            gang.say(EventType.CHECKPOINT, _manifest(job_id, 12, 0.9), [0])
            await world.until(job_id, State.RUNNING)
            world.publish(job_id, 24, 0.8)
            gang.dead |= {0, 1}
            await world.until(job_id, State.FAILED)

        assert [checkpoint.step for checkpoint in await world.store.checkpoints.of(job_id)] == [24]

    run(tmp_path, scenario)


def test_a_gang_that_cannot_be_started_fails_with_the_reason(tmp_path):
    """An import error on the nodes is not retried for ever."""

    async def scenario(world: World) -> None:
        world.cluster.form_error = ClusterError("rank 0 failed to start: no module named worker")
        async with world.controller():
            job = await world.until(await world.submit(), State.FAILED)

        assert job.reason == "gang_start_failed"
        assert "no module named worker" in job.message

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


def test_a_job_that_runs_too_long_fails(tmp_path):
    """timeout_s counts from the first training step."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit(timeout_s=0.2))
            gang.say(EventType.STATE, {"phase": "training"})
            job = await world.until(job_id, State.FAILED)

        assert job.reason == "timeout"
        assert gang.is_dissolved

    run(tmp_path, scenario)
