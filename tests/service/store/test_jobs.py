"""Tests of service/store/jobs.py and lifecycle.py."""

import asyncio

from service.states import TERMINAL, State
from service.store.ids import new_job_id
from service.store.jobs import JobFilter
from service.store.records import Progress
from tests.service.store.ranks import spec


async def _queued(store, **changes) -> str:
    return (await store.jobs.create(new_job_id(), spec(**changes)))[0]


async def _running(store) -> tuple[str, int]:
    job_id = await _queued(store)
    attempt = await store.attempts.begin(job_id, "first", 2)
    assert await store.jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="training", fence=attempt.fence)
    return job_id, attempt.fence


def test_a_stored_job_is_there_after_the_store_was_closed(with_store):
    """What was acknowledged outlives the process."""
    ids = []

    async def store_it(store):
        ids.append(await _queued(store, labels={"team": "vision"}, priority=7, seed=2**63 - 1))

    async def read_it(store):
        job = await store.jobs.get(ids[0])
        assert (job.name, job.state, job.reason, job.priority, job.labels) == ("t", State.QUEUED, "submitted", 7, {"team": "vision"})
        assert (job.world_size, job.fence, job.attempt, job.progress) == (2, 0, 0, Progress())
        assert job.spec == spec(labels={"team": "vision"}, priority=7, seed=2**63 - 1)

    with_store(store_it)
    with_store(read_it)


def test_the_queue_is_ordered_by_priority_then_age(with_store):
    """Who waits longest goes first among equals."""

    async def scenario(store):
        first, second, urgent = [await _queued(store, priority=priority) for priority in (0, 0, 5)]
        assert [job.id for job in await store.jobs.in_states([State.QUEUED])] == [urgent, first, second]

    with_store(scenario)


def test_a_transition_is_refused_where_the_job_is_not_as_believed(with_store):
    """Another state, a change that is never allowed, a stale fence, no such job: nothing changes."""

    async def scenario(store):
        job_id, fence = await _running(store)
        before = await store.jobs.get(job_id)
        assert not await store.jobs.transition(job_id, State.SUCCEEDED, from_={State.STARTING}, reason="x")
        assert not await store.jobs.transition(job_id, State.STARTING, from_={State.RUNNING}, reason="x")
        assert not await store.jobs.transition(job_id, State.SUCCEEDED, from_={State.RUNNING}, reason="x", fence=fence - 1)
        assert not await store.jobs.transition("job_none", State.SUCCEEDED, from_={State.RUNNING}, reason="x")
        assert await store.jobs.get(job_id) == before
        assert await store.jobs.transition(job_id, State.SUCCEEDED, from_={State.RUNNING}, reason="done", fence=fence)

    with_store(scenario)


def test_the_end_is_the_last_event_and_closes_the_attempt(with_store):
    """A reader that has seen `end` has seen everything."""

    async def scenario(store):
        job_id, fence = await _running(store)
        await store.jobs.transition(job_id, State.FAILED, from_={State.RUNNING}, reason="diverged", message="loss is NaN", fence=fence)
        events = await store.events.page(job_id, 0, 100)
        said = {"state": "failed", "reason": "diverged", "message": "loss is NaN"}
        assert [(event.seq, event.type.value) for event in events] == [(n, "state") for n in range(1, 5)] + [(5, "end")]
        assert events[-1].data == events[-2].data == said
        job = await store.jobs.get(job_id)
        [attempt] = await store.attempts.of(job_id)
        assert job.finished_at == attempt.finished_at
        assert job.started_at < job.finished_at

    with_store(scenario)


def test_transitions_tell_the_whole_life(with_store):
    """Every state with its reason and its time, in order."""

    async def scenario(store):
        job_id, fence = await _running(store)
        await store.jobs.transition(job_id, State.QUEUED, from_={State.RUNNING}, reason="rank_lost", fence=fence)
        life = (await store.jobs.transitions_of([job_id]))[job_id]
        assert [(change.state.value, change.reason) for change in life] == [
            ("queued", "submitted"),
            ("starting", "first"),
            ("running", "training"),
            ("queued", "rank_lost"),
        ]
        assert sorted(change.at for change in life) == [change.at for change in life]

    with_store(scenario)


def test_a_job_that_runs_again_keeps_its_first_start(with_store):
    """started_at is when it first ran."""

    async def scenario(store):
        job_id, fence = await _running(store)
        first = (await store.jobs.get(job_id)).started_at
        await store.jobs.transition(job_id, State.QUEUED, from_={State.RUNNING}, reason="rank_lost", fence=fence)
        again = await store.attempts.begin(job_id, "rank_lost", 2)
        await store.jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="training", fence=again.fence)
        assert (await store.jobs.get(job_id)).started_at == first
        assert [(attempt.number, attempt.finished_at is None) for attempt in await store.attempts.of(job_id)] == [(1, False), (2, True)]

    with_store(scenario)


def test_only_one_of_many_gets_to_begin_the_attempt(with_store):
    """A queued job is started once, however many try."""

    async def scenario(store):
        job_id = await _queued(store)
        begun = await asyncio.gather(*(store.attempts.begin(job_id, "first", 2) for _ in range(10)))
        assert [(attempt.number, attempt.fence) for attempt in begun if attempt] == [(1, 1)]

    with_store(scenario)


def test_pages_are_newest_first_and_filtered_by_state_and_label(with_store):
    """A list holds what was asked for, and pages neither repeat nor miss."""

    async def scenario(store):
        ids = [await _queued(store, labels={"parity": "odd" if number % 2 else "even", "n": str(number)}) for number in range(6)]
        await store.jobs.transition(ids[1], State.CANCELLED, from_={State.QUEUED}, reason="x")
        newest = [job.id for job in await store.jobs.page(JobFilter(), None, 4)]
        rest = [job.id for job in await store.jobs.page(JobFilter(), newest[-1], 4)]
        assert newest + rest == ids[::-1]
        odd = JobFilter(labels=(("parity", "odd"),))
        assert [job.id for job in await store.jobs.page(odd, None, 9)] == [ids[5], ids[3], ids[1]]
        both = JobFilter(frozenset({State.QUEUED}), (("parity", "odd"), ("n", "3")))
        assert [job.id for job in await store.jobs.page(both, None, 9)] == [ids[3]]
        assert [job.id for job in await store.jobs.page(JobFilter(TERMINAL), None, 9)] == [ids[1]]

    with_store(scenario)


def test_an_edit_of_another_edition_changes_nothing(with_store):
    """Two users who edit at once notice."""

    async def scenario(store):
        job_id = await _queued(store, labels={"a": "1"})
        assert await store.jobs.edit(job_id, 1, priority=3, labels={"b": "2"})
        assert not await store.jobs.edit(job_id, 1, priority=4, labels=None)
        job = await store.jobs.get(job_id)
        assert (job.priority, job.labels, job.edition) == (3, {"b": "2"}, 2)
        assert await store.jobs.page(JobFilter(labels=(("a", "1"),)), None, 9) == []

    with_store(scenario)


def test_a_deleted_job_leaves_nothing(with_store):
    """Its events, attempts and labels go with it."""

    async def scenario(store):
        job_id, fence = await _running(store)
        await store.jobs.transition(job_id, State.SUCCEEDED, from_={State.RUNNING}, reason="done", fence=fence)
        await store.jobs.delete(job_id)
        assert await store.jobs.get(job_id) is None
        assert await store.events.page(job_id, 0, 10) == []
        assert await store.attempts.of(job_id) == []

    with_store(scenario)


def test_a_new_reason_to_wait_is_no_transition(with_store):
    """The message may change every second; the history stays readable."""

    async def scenario(store):
        job_id = await _queued(store)
        await store.jobs.set_message(job_id, "waiting_for_room", "needs 2 CPUs, 1 is free")
        job = await store.jobs.get(job_id)
        assert (job.reason, job.message, job.last_seq) == ("waiting_for_room", "needs 2 CPUs, 1 is free", 1)
        assert len((await store.jobs.transitions_of([job_id]))[job_id]) == 1

    with_store(scenario)


def test_counts_name_every_state(with_store):
    """Also those in which no job is."""

    async def scenario(store):
        await _queued(store)
        counts = await store.jobs.counts()
        assert counts == dict.fromkeys(State, 0) | {State.QUEUED: 1}

    with_store(scenario)


def test_a_submission_wakes_the_reconciler(with_store):
    """Nobody waits for the next round."""

    async def scenario(store):
        waiting = asyncio.create_task(store.changes.jobs.wait())
        await asyncio.sleep(0)
        await _queued(store)
        await asyncio.wait_for(waiting, 1)

    with_store(scenario)


def test_ids_sort_by_age():
    """Also within one millisecond."""
    ids = [new_job_id() for _ in range(2000)]

    assert ids == sorted(set(ids))


def test_a_message_of_any_text_is_stored(with_store):
    """What a dying rank says may hold anything; the job's story is told all the same."""

    async def scenario(store):
        job_id = await _queued(store)
        await store.jobs.set_message(job_id, "odd", "a\0b\ud800c")
        assert (await store.jobs.get(job_id)).message == "a\ufffdb\ufffdc"

    with_store(scenario)
