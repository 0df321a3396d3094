"""Tests of service/store/events.py, journal.py, metrics.py and checkpoints.py."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from service.states import State
from service.store.columns import dump_json
from service.store.ids import new_job_id
from service.store.records import Progress
from tests.service.store.ranks import manifest, metrics, said, spec
from worker.contract import EventType


async def _started(store) -> str:
    job_id, _ = await store.jobs.create(new_job_id(), spec())
    assert (await store.attempts.begin(job_id, "first", 2)).fence == 1
    return job_id


async def _seqs(store, job_id: str) -> list[int]:
    return [event.seq for event in await store.events.page(job_id, 0, 10_000)]


def test_the_same_batch_twice_is_stored_once(with_store):
    """A controller that died after storing asks again and changes nothing."""

    async def scenario(store):
        job_id = await _started(store)
        batch = [metrics(seq, step=seq, train_loss=1 / seq) for seq in range(1, 6)]
        assert await store.events.ingest(job_id, 1, 0, batch[:3], 1)
        once = await store.events.page(job_id, 0, 100)
        assert await store.events.ingest(job_id, 1, 0, batch[:3], 1)
        assert await store.events.page(job_id, 0, 100) == once
        assert await store.events.ingest(job_id, 1, 0, batch, 1)
        assert await _seqs(store, job_id) == list(range(1, 8))
        assert await store.events.cursors(job_id, 1) == {0: 5}

    with_store(scenario)


def test_ranks_at_once_get_numbers_without_gaps(with_store):
    """The job has one order, whoever speaks."""

    async def scenario(store):
        job_id = await _started(store)
        batches = [[said(seq, EventType.LOG, stream="stdout", level="info", message=f"{rank}") for seq in (1, 2, 3)] for rank in range(8)]
        await asyncio.gather(*(store.events.ingest(job_id, 1, rank, batch, 1) for rank, batch in enumerate(batches)))
        assert await _seqs(store, job_id) == list(range(1, 2 + 8 * 3 + 1))
        assert await store.events.cursors(job_id, 1) == dict.fromkeys(range(8), 3)

    with_store(scenario)


def test_a_stale_fence_is_refused(with_store):
    """A gang that was given up cannot write into the job any more; the present one can."""

    async def scenario(store):
        job_id = await _started(store)
        await store.jobs.transition(job_id, State.QUEUED, from_={State.STARTING}, reason="rank_lost")
        assert (await store.attempts.begin(job_id, "rank_lost", 2)).fence == 2
        before = await store.jobs.get(job_id)
        assert not await store.events.ingest(job_id, 1, 0, [metrics(1, step=9, train_loss=9.0)], 1)
        assert await store.jobs.get(job_id) == before
        assert await store.metrics.names(job_id) == []
        assert await store.events.ingest(job_id, 2, 0, [metrics(1, step=9, train_loss=9.0)], 2)

    with_store(scenario)


def test_nothing_follows_the_end(with_store):
    """What a rank still says after the job is over is refused."""

    async def scenario(store):
        job_id = await _started(store)
        await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="rank_lost", fence=1)
        assert not await store.events.ingest(job_id, 1, 0, [said(1, EventType.LOG, message="late")], 1)
        assert (await store.events.page(job_id, 0, 100))[-1].type is EventType.END

    with_store(scenario)


def test_the_end_of_a_rank_is_no_end_of_the_job(with_store):
    """Only the job has an `end`; that of a rank is one of its phases."""

    async def scenario(store):
        job_id = await _started(store)
        await store.events.ingest(job_id, 1, 1, [said(1, EventType.END, outcome="succeeded", failure=None)], 1)
        last = (await store.events.page(job_id, 0, 100))[-1]
        assert (last.type, last.rank, last.data) == (EventType.STATE, 1, {"phase": "ended", "outcome": "succeeded", "failure": None})
        assert await store.events.cursors(job_id, 1) == {1: 1}

    with_store(scenario)


def test_metrics_feed_series_progress_and_latest_values(with_store):
    """A step that is done again replaces its point; a value that is missing keeps its last one."""

    async def scenario(store):
        job_id = await _started(store)
        await store.events.ingest(job_id, 1, 0, [metrics(1, 1, train_loss=3.0, val_accuracy=0.1), metrics(2, 2, train_loss=2.0)], 1)
        await store.events.ingest(job_id, 1, 0, [metrics(3, 2, train_loss=2.5), metrics(4, 3, train_loss=float("inf"))], 1)
        assert await store.metrics.names(job_id) == ["train/loss", "val/accuracy"]
        assert await store.metrics.points(job_id, "train/loss", 100) == [(1, 3.0), (2, 2.5)]
        job = await store.jobs.get(job_id)
        assert job.metrics == {"train/loss": 2.5, "val/accuracy": 0.1}
        assert job.progress == Progress(step=3, total_steps=100, epoch=0.3, samples=24)

    with_store(scenario)


def test_checkpoints_enter_the_catalogue_and_leave_it(with_store):
    """What was announced is listed, newest first; what was pruned is gone."""

    async def scenario(store):
        job_id = await _started(store)
        batch = [said(seq, EventType.CHECKPOINT, **manifest(job_id, seq * 10)) for seq in (1, 2, 3)]
        await store.events.ingest(job_id, 1, 0, batch, 1)
        assert [one.step for one in await store.checkpoints.of(job_id)] == [30, 20, 10]
        await store.events.ingest(job_id, 1, 0, [said(4, EventType.PRUNED, steps=[10, 20])], 1)
        assert [one.step for one in await store.checkpoints.of(job_id)] == [30]
        assert (await store.checkpoints.get(job_id, 30)).manifest.samples == 240
        assert await store.checkpoints.get(job_id, 10) is None

    with_store(scenario)


def test_a_manifest_of_another_job_or_fence_stays_out_of_the_catalogue(with_store):
    """What is listed can be read back and belongs here; the event itself is kept."""

    async def scenario(store):
        job_id = await _started(store)
        wrong = [manifest("job_other", 1), manifest(job_id, 2, fence=7), {"step": 3}, manifest(job_id, 4)]
        batch = [said(seq, EventType.CHECKPOINT, **data) for seq, data in enumerate(wrong, 1)]
        assert await store.events.ingest(job_id, 1, 0, batch, 1)
        assert [one.step for one in await store.checkpoints.of(job_id)] == [4]
        assert await store.events.cursors(job_id, 1) == {0: 4}

    with_store(scenario)


def test_pages_can_be_of_some_types_and_one_rank(with_store):
    """Logs of one rank, and the end of the job with them."""

    async def scenario(store):
        job_id = await _started(store)
        for rank in (0, 1):
            await store.events.ingest(job_id, 1, rank, [said(1, EventType.LOG, message=f"from {rank}"), metrics(2, 1)], 1)
        await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="rank_lost", fence=1)
        page = await store.events.page(job_id, 0, 100, types=(EventType.LOG, EventType.END), rank=1)
        assert [(event.type.value, event.rank) for event in page] == [("log", 1), ("end", None)]

    with_store(scenario)


def test_what_json_cannot_say_is_mended_on_the_way_in(with_store):
    """A log line with broken text, or a number that is none, must not make the job unreadable."""

    async def scenario(store):
        job_id = await _started(store)
        await store.events.ingest(job_id, 1, 0, [said(1, EventType.LOG, message="a\ud800b\x00", level=float("nan"), odd={1: {2}})], 1)
        assert (await store.events.page(job_id, 2, 1))[0].data == {"message": "a\ufffdb\x00", "level": None, "odd": {"1": "{2}"}}

    with_store(scenario)


@given(
    st.recursive(
        st.none() | st.floats() | st.text(st.characters()) | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_value_becomes_strict_json(value):
    """Whatever a rank sends."""
    dump_json(value).encode()
