"""Tests of service/store/queue.py."""

from datetime import UTC, datetime, timedelta

import pytest

from service import jobs
from service.quotas import Quota
from service.room import Bundle
from service.scheduling import GRACE
from service.states import State
from service.store.ids import new_job_id
from service.store.queue import PAUSE_REQUESTED, PREEMPTED, QueueCap, QueueFullError
from service.store.usage import Used
from tests.service.store.ranks import manifest, said, spec
from worker.contract import EventType


async def _queued(store, **changes) -> str:
    job_id, _ = await store.jobs.create(new_job_id(), spec(**changes))
    return job_id


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pages_together_are_the_queue(with_store, size):
    """Priority, then age; nobody twice, nobody left out, whatever the size of a page."""

    async def scenario(store):
        ids = [await _queued(store, priority=priority) for priority in (0, -3, 5, 0, 5, 0)]
        pages = [page async for page in store.queue.pages(size)]

        assert [queued.need.job_id for page in pages for queued in page] == [ids[place] for place in (2, 4, 0, 3, 5, 1)]
        assert [job.id for job in await store.jobs.queue(2, 3)] == [ids[place] for place in (0, 3, 5)]
        assert all(len(page) <= size for page in pages)

    with_store(scenario)


def test_a_need_is_what_the_spec_says(with_store):
    """Without reading the spec; a timeout beyond all time is one of a century."""

    async def scenario(store):
        resources = {"workers": 3, "cpus_per_worker": 0.5, "gpus_per_worker": 1}
        job_id = await _queued(store, resources=resources, timeout_s=1e300, labels={"team": "a"}, priority=2)
        [[queued]] = [page async for page in store.queue.pages(10)]

        need = queued.need
        assert (need.job_id, need.min_workers, need.max_workers, need.bundle) == (job_id, 3, 3, Bundle(0.5, 1))
        assert (need.timeout.days, need.priority, need.labels) == (36_500, 2, {"team": "a"})
        await store.attempts.begin(job_id, "first", 2)
        [held] = await store.queue.held()
        assert (held.job_id, held.workers, held.running_since, held.is_pausable, held.is_leaving) == (job_id, 2, None, False, False)
        assert [page async for page in store.queue.pages(10)] == []

    with_store(scenario)


def test_a_queue_has_an_end(with_store):
    """As many queued jobs with a label as the cap says; those that run do not count."""
    cap = QueueCap(Quota(label="team"), "a", 2)

    async def submit(store, **labels):
        return (await store.jobs.create(new_job_id(), spec(labels=labels), caps=[cap]))[0]

    async def scenario(store):
        first = await submit(store, team="a")
        await submit(store, team="a")
        with pytest.raises(QueueFullError, match="2 jobs with label team=a are queued"):
            await submit(store, team="a")
        await store.attempts.begin(first, "first", 2)
        await submit(store, team="a")

    with_store(scenario)


def test_a_job_paused_to_make_room_is_told_from_one_paused_by_a_user(with_store):
    """Only the last pause counts."""

    async def pause(store, job_id, reason):
        await store.attempts.begin(job_id, "first", 2)
        await store.jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="training")
        await store.jobs.transition(job_id, State.PAUSING, from_={State.RUNNING}, reason=reason)
        await store.jobs.transition(job_id, State.PAUSED, from_={State.PAUSING}, reason="paused")

    async def scenario(store):
        one, other = await _queued(store), await _queued(store)
        await pause(store, one, PREEMPTED)
        await pause(store, other, "paused_by_user")
        assert await store.queue.requeue_preempted() == [one]
        assert (await store.jobs.get(one)).reason == PREEMPTED
        await pause(store, one, "paused_by_user")
        assert await store.queue.requeue_preempted() == []

    with_store(scenario)


@pytest.mark.parametrize("state", [State.PAUSING, State.PAUSED])
def test_a_user_who_pauses_a_job_that_is_making_room_finds_it_paused(with_store, state):
    """Asked while the job still saves, or when it has come to rest already; resume is what brings it back."""

    async def scenario(store):
        job_id = await _queued(store)
        await _run(store, job_id)
        await store.jobs.transition(job_id, State.PAUSING, from_={State.RUNNING}, reason=PREEMPTED)
        if state is State.PAUSED:
            await store.jobs.transition(job_id, State.PAUSED, from_={State.PAUSING}, reason="paused")
        view = await jobs.pause(store, job_id)
        assert (view.job.state, view.job.reason) == (state, PAUSE_REQUESTED)
        assert len((await jobs.pause(store, job_id)).transitions) == len(view.transitions)
        if state is State.PAUSING:
            await store.jobs.transition(job_id, State.PAUSED, from_={State.PAUSING}, reason="paused")

        assert await store.queue.requeue_preempted() == []
        assert (await jobs.resume(store, job_id)).job.state is State.QUEUED

    with_store(scenario)


def test_time_in_the_queue_and_paused_is_not_running_time(with_store):
    """What is left of timeout_s is what the job has not trained yet, for the job and for the scheduler alike."""

    async def scenario(store):
        job_id = await _queued(store, timeout_s=1000)
        await _run(store, job_id)
        began = (await store.jobs.get(job_id)).running_since
        await store.jobs.transition(job_id, State.RECOVERING, from_={State.RUNNING}, reason="rank_lost")
        await store.jobs.transition(job_id, State.RUNNING, from_={State.RECOVERING}, reason="recovered")
        assert (await store.jobs.get(job_id)).running_since == began
        await store.jobs.transition(job_id, State.PAUSING, from_={State.RUNNING}, reason=PAUSE_REQUESTED)
        await store.jobs.transition(job_id, State.PAUSED, from_={State.PAUSING}, reason="paused")
        job = await store.jobs.get(job_id)
        assert job.running_since is None
        assert 0 < job.ran_us < 60e6
        assert job.ran_s(datetime.now(UTC) + timedelta(days=1)) == job.ran_us / 1e6

        await jobs.resume(store, job_id)
        [[queued]] = [page async for page in store.queue.pages(10)]
        assert queued.need.timeout.total_seconds() == pytest.approx(1000 - job.ran_us / 1e6)
        await _run(store, job_id)
        again, [held] = await store.jobs.get(job_id), await store.queue.held()
        assert again.started_at == began
        assert again.running_since > began
        assert again.ran_s(again.running_since + timedelta(seconds=5)) == pytest.approx(job.ran_us / 1e6 + 5)
        assert held.ends_by(again.running_since) == again.running_since + queued.need.timeout + GRACE

    with_store(scenario)


async def _run(store, job_id: str) -> None:
    await store.attempts.begin(job_id, "first", 2)
    await store.jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="training")


def test_usage_is_counted_by_label_token_and_project(with_store):
    """What is held and what waits; checkpoints also of jobs that have ended."""

    async def scenario(store):
        jobs_of = [("a", "ann", "p"), ("a", "bob", "p"), ("b", "bob", "q")]
        ids = []
        for team, submitter, project in jobs_of:
            wish = spec(labels={"team": team}, resources={"workers": 2, "gpus_per_worker": 1})
            ids.append((await store.jobs.create(new_job_id(), wish, project=project, submitter=submitter))[0])
        await _run(store, ids[0])
        files = {"model.safetensors": {"size": 70, "sha256": "0" * 64}, "training.json": {"size": 30, "sha256": "0" * 64}}
        for seq, job_id in enumerate(ids[1:], 1):
            await _run(store, job_id)
            await store.events.ingest(job_id, 1, 0, [said(seq, EventType.CHECKPOINT, **manifest(job_id, 10, files=files))], 1)
            await store.jobs.transition(job_id, State.SUCCEEDED, from_={State.RUNNING}, reason="done")
        await store.jobs.create(new_job_id(), spec(labels={"team": "b"}), submitter="ann")

        by_team = await store.usage.of(Quota(label="team"))
        assert by_team == {"a": Used(1, 2, 2, 0, 100), "b": Used(queued_jobs=1, storage_bytes=100)}
        assert await store.usage.of(Quota(by="token")) == {"ann": Used(1, 2, 2, 1, 0), "bob": Used(storage_bytes=200)}
        assert await store.usage.of(Quota(by="project", value="p")) == {"p": Used(1, 2, 2, 0, 100)}
        assert await store.usage.of(Quota(label="team", value="none")) == {"none": Used()}
        assert await store.usage.groups_with(Quota(by="token"), "q") == {"bob"}
        await store.jobs.delete(ids[2])
        assert await store.usage.stored(Quota(label="team")) == {"a": 100}

    with_store(scenario)


@pytest.mark.parametrize(("by", "group"), [("token", "ann"), ("project", "p")])
def test_a_token_or_a_project_has_its_places_in_the_queue(with_store, by, group):
    """Whatever the labels say."""

    async def scenario(store):
        owner = {"project": "p", "submitter": "ann"}
        cap = QueueCap(Quota(by=by), group, 1)
        await store.jobs.create(new_job_id(), spec(), caps=[cap], **owner)
        with pytest.raises(QueueFullError, match=f"1 jobs with {by} {group} are queued"):
            await store.jobs.create(new_job_id(), spec(), caps=[cap], **owner)
        await store.jobs.create(new_job_id(), spec(), caps=[QueueCap(Quota(by=by), "else", 1)], project="else", submitter="else")

    with_store(scenario)
