"""Tests of service/store/prunings.py."""

import pytest

from service.states import State
from service.store import log_quota, prunings
from service.store.ids import new_job_id
from service.store.prunings import Part
from tests.service.store.ranks import metrics, said, spec
from worker.contract import EventType


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Few rows in a transaction, so that a short history takes several."""
    for module in (prunings, log_quota):
        monkeypatch.setattr(module, "CHUNK", 4)


async def _ended(store, num_steps: int = 10) -> str:
    """A job that has logged and measured, and is over."""
    job_id, _ = await store.jobs.create(new_job_id(), spec())
    await store.attempts.begin(job_id, "first", 2)
    lines = [said(seq, EventType.LOG, stream="stdout", message=f"line {seq}") for seq in range(1, num_steps + 1)]
    steps = [metrics(num_steps + step, step, train_loss=1.0, train_accuracy=0.5) for step in range(1, num_steps + 1)]
    assert await store.events.ingest(job_id, 1, 0, [*lines, *steps], 1)
    assert await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="over")
    return job_id


async def _all(step, job_id: str) -> int:
    """Take a step until nothing is left; return how many it took."""
    number = 1
    while await step(job_id):
        number += 1
    return number


async def _old(store, part: Part, days: int = 0) -> list[str]:
    return [job_id async for job_id in store.prunings.old(part, days)]


def test_where_events_were_one_says_which(with_store):
    """Whoever reads on from anywhere is told what is missing, whatever they look for; `end` stays, and numbers mean what they meant."""

    async def scenario(store):
        job_id = await _ended(store)
        last = (await store.jobs.get(job_id)).last_seq
        assert await _old(store, Part.EVENTS) == [job_id]
        assert await store.prunings.drop_events(job_id)
        gap, *rest = await store.events.page(job_id, 0, 100)
        assert (gap.type, gap.seq, gap.data["first_seq"], gap.data["last_seq"]) == (EventType.GAP, 4, 1, 4)
        assert [event.seq for event in rest] == list(range(5, last + 1))

        assert await _all(store.prunings.drop_events, job_id) > 1
        gap, end = await store.events.page(job_id, 7, 100)
        assert (gap.seq, gap.data["first_seq"], gap.data["last_seq"], gap.rank) == (last - 1, 1, last - 1, None)
        assert (end.seq, end.type) == (last, EventType.END)
        assert f"events 1 to {last - 1} were dropped" in gap.data["message"]
        assert await store.events.page(job_id, 0, 100, types=[EventType.METRICS], rank=3) == [gap, end][:1]
        assert await _old(store, Part.EVENTS) == []

    with_store(scenario)


def test_where_lines_were_one_says_how_many(with_store):
    """The other events stay as they are."""

    async def scenario(store):
        job_id = await _ended(store)
        others = [event for event in await store.events.page(job_id, 0, 100) if event.type is not EventType.LOG]
        assert await _old(store, Part.LOGS) == [job_id]
        assert await _all(store.prunings.drop_logs, job_id) > 1
        [line] = await store.events.page(job_id, 0, 100, types=[EventType.LOG])
        assert (line.data["num_dropped"], line.data["message"][:27]) == (10, "10 lines were dropped here:")
        assert [event for event in await store.events.page(job_id, 0, 100) if event.type is not EventType.LOG] == others
        assert await _old(store, Part.LOGS) == []

    with_store(scenario)


def test_series_go_and_the_last_values_stay(with_store):
    """The job still says how it ended."""

    async def scenario(store):
        job_id, other = await _ended(store), await _ended(store)
        assert await _all(store.prunings.drop_metrics, job_id) > 1
        assert await store.metrics.names(job_id) == []
        assert (await store.jobs.get(job_id)).metrics == {"train/loss": 1.0, "train/accuracy": 0.5}
        assert len(await store.metrics.points(other, "train/loss", 100)) == 10
        assert await _old(store, Part.METRICS) == [other]

    with_store(scenario)


def test_what_is_not_old_is_left_alone(with_store):
    """A job that has not ended, for ever; one that has, for the days that it has; by the database's clock."""

    async def scenario(store):
        live, _ = await store.jobs.create(new_job_id(), spec())
        await store.attempts.begin(live, "first", 2)
        await store.events.ingest(live, 1, 0, [metrics(1, 1, train_loss=1.0), said(2, EventType.LOG, message="x")], 1)
        before = await store.events.page(live, 0, 100)
        job_id = await _ended(store)
        for part in set(Part) - {Part.CHECKPOINTS}:  # of which it has none
            assert await _old(store, part, days=0) == [job_id]
            assert await _old(store, part, days=1) == []
        await _all(store.prunings.drop_events, live)
        assert await store.events.page(live, 0, 100) == before

    with_store(scenario)


def test_a_job_that_another_one_starts_from_is_known(with_store):
    """Until the other has ended."""

    async def scenario(store):
        job_id = await _ended(store)
        heir, _ = await store.jobs.create(new_job_id(), spec(initialize_from=f"{job_id}/checkpoints/latest"))
        assert await store.prunings.needed() == {job_id}
        await store.jobs.transition(heir, State.CANCELLED, from_={State.QUEUED}, reason="over")
        assert await store.prunings.needed() == set()

    with_store(scenario)
