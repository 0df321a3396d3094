"""What can be done with jobs: submit, describe, pause, resume, resize, cancel, edit, delete. Knows neither HTTP nor Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.artifacts import Artifacts
from service.errors import ChangedError, ConflictError, InvalidError, NotFoundError, QuotaError
from service.quotas import Owner, Quota
from service.scopes import DEFAULT_PROJECT
from service.states import TERMINAL, State
from service.store.bundles import CodeGoneError
from service.store.idempotency import KeyReusedError
from service.store.ids import new_job_id
from service.store.queue import PAUSE_REQUESTED, QueueCap, QueueFullError
from service.store.records import Attempt, IdempotencyClaim, Job, Transition
from service.store.store import Store
from worker.contract import JobSpec, Problem, parse_spec

CANCEL_REQUESTED = "cancel_requested"
RESUME_REQUESTED = "resume_requested"
_WITHOUT_GANG = frozenset({State.QUEUED, State.PAUSED})


@dataclass(frozen=True)
class JobView:
    """A job with its history."""

    job: Job
    transitions: Sequence[Transition]
    attempts: Sequence[Attempt]


async def submit(
    store: Store,
    artifacts: Artifacts,
    spec: JobSpec,
    claim: IdempotencyClaim | None = None,
    quotas: Sequence[Quota] = (),
    *,
    project: str = DEFAULT_PROJECT,
    submitter: str = "",
) -> tuple[JobView, bool]:
    """Store a job, durably when this returns. Whether its owner may ask for it is looked at in `service.admission`, before.

    Args:
        store: where it goes.
        artifacts: where checkpoints are that the spec may name.
        spec: the job.
        claim: the idempotency key, where there is one.
        quotas: limits on queued jobs.
        project: whose it is.
        submitter: the name of the token that asks.
    Returns:
        The job, and whether it is new; it is not where the same request came before.
    Raises:
        InvalidError: `initialize_from` names no checkpoint, or the idempotency key belongs to another request.
        QuotaError: as many jobs are queued as a quota allows.
    """
    await check_references(artifacts, spec)
    try:
        caps = caps_of(spec, quotas, project=project, submitter=submitter)
        job_id, is_new = await store.jobs.create(new_job_id(), spec, claim, caps, project=project, submitter=submitter)
    except (QueueFullError, KeyReusedError, CodeGoneError) as error:
        raise refusal(error) from error
    return await describe(store, await find(store, job_id)), is_new


def refusal(error: QueueFullError | KeyReusedError | CodeGoneError) -> QuotaError | InvalidError:
    """Return what to tell whoever submitted, where the store refuses."""
    if isinstance(error, CodeGoneError):
        gone = Problem(loc="code", value=str(error), expected="code that is here", remedy="upload it again with POST /v1/code")
        return InvalidError.of([gone], code="invalid_spec")
    if isinstance(error, QueueFullError):
        return QuotaError(f"{error}, which is as many as its quota allows; wait until some have started, or cancel some")
    problem = Problem(
        loc="header.idempotency-key", value=str(error), expected="a key of this request alone", remedy="send a new key for a new request"
    )
    return InvalidError.of([problem], code="idempotency_key_reused")


async def check_references(artifacts: Artifacts, spec: JobSpec) -> None:
    """Raise InvalidError where the spec names a checkpoint that is not there."""
    if spec.initialize_from is None:
        return
    job_id, _, step = spec.initialize_from.split("/")
    try:
        await artifacts.find(job_id, step)
    except NotFoundError as error:
        problem = Problem(
            loc="initialize_from",
            value=spec.initialize_from,
            expected="a checkpoint that is there",
            remedy=f"see the checkpoints of {job_id}",
        )
        raise InvalidError.of([problem], code="invalid_spec") from error


def caps_of(spec: JobSpec, quotas: Sequence[Quota], *, project: str = DEFAULT_PROJECT, submitter: str = "") -> list[QueueCap]:
    """Return the limits on queued jobs that one more must keep."""
    owner = Owner(spec.labels, project, submitter)
    groups = [(quota, quota.group_of(owner), quota.queued_jobs) for quota in quotas]
    return [QueueCap(quota, group, limit) for quota, group, limit in groups if group is not None and limit is not None]


async def find(store: Store, job_id: str) -> Job:
    """Return a job, or raise NotFoundError."""
    job = await store.jobs.get(job_id)
    if job is None:
        raise job_not_here(job_id)
    return job


def job_not_here(job_id: str) -> NotFoundError:
    """Return the error for a job that there is not, or not for whoever asks."""
    return NotFoundError(f"job {job_id} is not here; expected the id of a job; GET /v1/jobs lists them", code="job_not_found")


async def describe(store: Store, job: Job) -> JobView:
    """Return a job with its history."""
    return (await describe_all(store, [job]))[0]


async def describe_all(store: Store, jobs: Sequence[Job]) -> list[JobView]:
    """Return jobs with their histories, in the same order."""
    ids = [job.id for job in jobs]
    transitions, attempts = await store.jobs.histories(ids)
    return [JobView(job, transitions[job.id], attempts[job.id]) for job in jobs]


async def cancel(store: Store, job_id: str) -> JobView:
    """Have a job end as `cancelled`: at once where it has no processes, else when the last of them is gone.

    Doing it again changes nothing.

    Raises:
        NotFoundError: no such job.
        ConflictError: it has ended otherwise.
    """
    while True:
        job = await find(store, job_id)
        if job.state in {State.CANCELLING, State.CANCELLED}:
            return await describe(store, job)
        if job.state in TERMINAL:
            raise ConflictError(
                f"job {job_id} is {job.state}; expected one that has not ended; there is nothing to cancel", code="job_already_ended"
            )
        # False where the job moved on since it was read: look again.
        to = State.CANCELLED if job.state in _WITHOUT_GANG else State.CANCELLING
        if await store.jobs.transition(job_id, to, from_={job.state}, reason=CANCEL_REQUESTED, message="cancelled on request"):
            store.changes.jobs.set()
            return await describe(store, await find(store, job_id))


async def pause(store: Store, job_id: str) -> JobView:
    """Have a job save, give its room back and wait for `resume`: at once where it has no processes, else after the present step.

    Doing it again changes nothing. A job that is being paused only to make room stays paused, too.

    Raises:
        NotFoundError: no such job.
        ConflictError: it has ended, or is about to.
    """
    while True:
        job = await find(store, job_id)
        if job.state in {State.PAUSING, State.PAUSED} and not await store.queue.is_preempted(job_id):
            return await describe(store, job)
        if job.state in TERMINAL | {State.CANCELLING}:
            raise ConflictError(
                f"job {job_id} is {job.state}; expected one that goes on; there is nothing to pause", code="job_already_ended"
            )
        to = State.PAUSED if job.state in _WITHOUT_GANG else State.PAUSING
        if await store.jobs.transition(job_id, to, from_={job.state}, reason=PAUSE_REQUESTED, message="paused on request"):
            store.changes.jobs.set()
            return await describe(store, await find(store, job_id))


async def resume(store: Store, job_id: str) -> JobView:
    """Have a paused job queued again; it goes on exactly from the step at which it was paused. Doing it again changes nothing.

    Raises:
        NotFoundError: no such job.
        ConflictError: it has ended, or its processes are still being ended.
    """
    while True:
        job = await find(store, job_id)
        if job.state in {State.QUEUED, State.STARTING, State.RUNNING, State.RECOVERING}:
            return await describe(store, job)
        if job.state is not State.PAUSED:
            raise ConflictError(f"job {job_id} is {job.state}; expected one that is paused; wait until it is", code="job_not_paused")
        if await store.jobs.transition(job_id, State.QUEUED, from_={State.PAUSED}, reason=RESUME_REQUESTED, message="resumed on request"):
            store.changes.jobs.set()
            return await describe(store, await find(store, job_id))


async def resize(store: Store, job_id: str, workers: int) -> JobView:
    """Ask for another number of workers: it replaces the number that the spec names, or the `max` of its range.

    A job without processes starts with it; a live one gets fewer at once, and more as soon as the scheduler finds room for them.
    Doing it again changes nothing.

    Raises:
        NotFoundError: no such job.
        ConflictError: it has ended, or is about to.
        SpecError: it could not be submitted with this number.
    """
    while True:
        job = await find(store, job_id)
        if job.state in TERMINAL | {State.CANCELLING}:
            raise ConflictError(
                f"job {job_id} is {job.state}; expected one that goes on; there is nothing to resize", code="job_already_ended"
            )
        resources = job.spec.resources.resized(workers)
        parse_spec(job.document | {"resources": resources})
        if await store.resizes.ask(job_id, job.state, resources):
            store.changes.jobs.set()
            return await describe(store, await find(store, job_id))


async def edit(store: Store, job_id: str, edition: int | None, *, priority: int | None, labels: Mapping[str, str] | None) -> JobView:
    """Change a job's priority or labels.

    Args:
        store: where the job is.
        job_id: the job.
        edition: the one that the user has seen; None for whichever there is.
        priority: the new one, or None to keep it.
        labels: all of the new ones, or None to keep them.
    Raises:
        NotFoundError: no such job.
        ChangedError: it is of another edition by now.
    """
    if not await store.jobs.edit(job_id, edition, priority=priority, labels=labels):
        job = await find(store, job_id)
        raise ChangedError(f'job {job_id} has ETag "{job.edition}" now; expected "{edition}"; read it again and repeat the change')
    return await describe(store, await find(store, job_id))


async def delete(store: Store, artifacts: Artifacts, job_id: str) -> None:
    """Delete a job that is over, and its files.

    Raises:
        NotFoundError: no such job.
        ConflictError: it is not over.
    """
    job = await find(store, job_id)
    if job.state not in TERMINAL:
        raise ConflictError(f"job {job_id} is {job.state}; expected one that has ended; cancel it first", code="job_not_ended")
    # Piece by piece, so that nobody waits long for the database while millions of rows go.
    while await store.prunings.drop_events(job_id) or await store.prunings.drop_metrics(job_id):
        pass
    # Files first: a crash between the two leaves a job that can be deleted again, not files that nobody knows.
    await artifacts.delete(job_id)
    await store.jobs.delete(job_id)
