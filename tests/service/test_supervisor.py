"""Tests of service/supervisor.py, on a real store and a cluster in memory."""

import asyncio

import pytest

from service import cluster, jobs, pausing, reconciler, watch
from service.cluster import ClusterError
from service.states import TERMINAL, State
from tests.support.world import World, run
from worker import family, gang
from worker.contract import EventType


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


def test_a_lost_rank_without_recoveries_fails_the_job_and_is_named(tmp_path):
    """Reason rank_lost, the rank in the message, every process gone."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit(retries={"recoveries": 0}))
            gang.say(EventType.STATE, {"phase": "training"})
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
            job_id, gang = await world.training()
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
            job_id, gang = await world.training()
        job = await world.store.jobs.get(job_id)
        gang.end()
        for rank in range(2):
            events, _ = gang.buffers[rank].drain(0, 0)
            await world.store.events.ingest(job_id, 1, rank, events, job.fence)
        async with world.controller():
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("outcome", "failure", "ends_as", "reason"),
    [
        ("succeeded", None, State.SUCCEEDED, "completed"),
        ("failed", {"code": "task_error", "message": "ValueError: no", "rank": 0, "retryable": False}, State.FAILED, "task_error"),
    ],
)
def test_an_end_whose_gang_was_dissolved_already_is_what_it_was(tmp_path, outcome, failure, ends_as, reason):
    """A controller killed between the last process and the last word of the job: no restart, though not one is allowed or needed."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(retries={"restarts": 0})
        job = await world.store.jobs.get(job_id)
        gang.end(outcome, failure)
        for rank in range(2):
            events, _ = gang.buffers[rank].drain(0, 0)
            await world.store.events.ingest(job_id, 1, rank, events, job.fence)
        await gang.dissolve()
        async with world.controller():
            job = await world.until(job_id, *TERMINAL)

        assert (job.state, job.reason, job.attempt) == (ends_as, reason, 1)

    run(tmp_path, scenario)


def test_a_mistake_on_record_counts_though_its_rank_was_ended_already(tmp_path):
    """A controller killed while it ended the gang of a job that failed: no rank is replaced, the reason is the mistake."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(retries={"recoveries": 0})
        job = await world.store.jobs.get(job_id)
        gang.end("failed", {"code": "task_error", "message": "ValueError: no", "rank": 0, "retryable": False}, [0])
        await world.store.events.ingest(job_id, 1, 0, gang.buffers[0].drain(0, 0)[0], job.fence)
        gang.dead.add(0)
        async with world.controller():
            assert (await world.until(job_id, State.FAILED)).reason == "task_error"

    run(tmp_path, scenario)


def test_the_last_word_of_a_rank_that_was_replaced_counts_no_more(tmp_path):
    """Its place was taken by a process that said more; then all died: the job starts again."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.end("failed", {"code": "system_error", "message": "too little memory", "rank": 1, "retryable": True}, [1])
            while not gang.replaced or gang.is_torn:
                await asyncio.sleep(0.005)
            gang.say(EventType.STATE, {"phase": "training", "generation": 2})
            await world.until(job_id, State.RUNNING)
            while await world.store.events.last_words(job_id, 1):
                await asyncio.sleep(0.005)
        gang.is_dissolved = True
        async with world.controller():
            (await world.cluster.gang(job_id, attempt=2)).end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def test_a_job_that_was_to_pause_while_its_gang_was_formed_is_paused(tmp_path):
    """Its controller was killed meanwhile. No rank was lost, since none had begun: nothing is used up."""

    async def scenario(world: World) -> None:
        job_id = await world.submit(retries={"restarts": 0})
        await world.store.attempts.begin(job_id, "submitted", 2)
        await world.store.jobs.transition(job_id, State.PAUSING, from_={State.STARTING}, reason="pause_requested")
        async with world.controller():
            await world.until(job_id, State.PAUSED)

    run(tmp_path, scenario)


@pytest.mark.parametrize(("ask", "ends_as"), [(jobs.cancel, State.CANCELLED), (jobs.pause, State.PAUSED)])
def test_a_cancel_or_a_pause_does_not_wait_for_the_gang_to_be_formed(tmp_path, ask, ends_as):
    """There is no room after all, and nobody waits for it; what was made is ended."""

    async def scenario(world: World) -> None:
        world.cluster.is_room_kept_back = True
        async with world.controller():
            job_id = await world.submit()
            await world.until(job_id, State.STARTING)
            await ask(world.store, job_id)
            await world.until(job_id, ends_as, timeout_s=3)
        assert world.cluster.gangs == {}

    run(tmp_path, scenario)


def test_nothing_is_left_15_seconds_after_a_cancel():
    """Whatever ranks do: what each part of the way may take makes no more than that, the kernel's time to end processes included."""
    parts = [reconciler.ROUND_S, watch.LOOK_S, gang.IDENTIFY_DOOMED_S, family.EXIT_TIMEOUT_S]

    assert sum(parts) + watch.CANCEL_GRACE_S <= 15
    assert sum(parts) + pausing.FORMING_S <= 15, "the same of a pause before the first step"
    assert pausing.FORMING_S > cluster.POLL_S


def test_a_cancel_does_not_wait_for_a_gang_that_is_looked_for_in_vain(tmp_path):
    """A controller that takes over asks ranks that do not answer; the cancel comes in the midst of it."""

    async def scenario(world: World) -> None:
        job_id, gang = None, None
        async with world.controller():
            job_id, gang = await world.training()
        asked = asyncio.Event()

        async def adopt(*_given, **_named):
            asked.set()
            await asyncio.Event().wait()

        world.cluster.adopt = adopt
        async with world.controller():
            async with asyncio.timeout(8):
                await asked.wait()
            await jobs.cancel(world.store, job_id)
            await world.until(job_id, State.CANCELLED)
        assert gang.is_dissolved

    run(tmp_path, scenario)


def test_an_attempt_cut_off_while_forming_is_begun_anew(tmp_path):
    """No second gang for one job: what was half formed is dissolved before the next attempt."""

    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await world.store.attempts.begin(job_id, "submitted", 2)
        half = await world.cluster.form(job_id, 1, 2, cpus=1, gpus=0, is_given_up=lambda: False)
        async with world.controller():
            gang = await world.cluster.gang(job_id, attempt=2)

            assert half.is_dissolved
            assert gang.assignments[0].fence == 2

    run(tmp_path, scenario)


def test_a_gang_that_is_wholly_gone_restarts_within_its_budget(tmp_path):
    """After a restart of the machine, training goes on from the last checkpoint, as often as the spec allows."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(retries={"restarts": 1})
        gang.is_dissolved = True
        async with world.controller():
            second = await world.train(job_id, attempt=2)
        second.is_dissolved = True
        async with world.controller():
            job = await world.until(job_id, State.FAILED)

        assert job.reason == "rank_lost"
        assert [attempt.reason for attempt in await world.store.attempts.of(job_id)] == ["submitted", "restart"]

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
