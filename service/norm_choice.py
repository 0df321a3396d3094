"""The shell of `norm.kind: auto`: starts the trials of jobs that ask for it, and settles those whose trials have ended.

One controller does it at a time, in the rounds in which it plans the queue. A controller killed in between leaves nothing undone: the
trials of a job are made under a key of the job, and a job is settled in one transaction.
"""

from service import jobs
from service.comparison_table import Stage, stage
from service.comparisons import table
from service.errors import ConflictError, InvalidError, NotFoundError
from service.states import State
from service.store.comparisons import NewComparison, NewVariant
from service.store.ids import new_id, new_job_id
from service.store.jobs import CHOOSING_NORM
from service.store.records import Comparison, IdempotencyClaim, Job
from service.store.store import Store
from service.trials import choose, kinds, trial_document
from service.variants import variants


async def choose_norms(store: Store) -> None:
    """Take every job that asks for a choice one step further, where there is a step to take."""
    for job_id in await store.norm_choices.open():
        job = await store.jobs.get(job_id)
        if job is not None:
            await _advance(store, job)


async def _advance(store: Store, job: Job) -> None:
    if job.state is not State.QUEUED:  # cancelled: its trials have nothing to decide
        await _cancel_trials(store, job)
        await store.norm_choices.close(job.id)
        return
    try:
        comparison = await _trials_of(store, job)
    except InvalidError as error:
        first = kinds(job.spec)[0]
        await store.norm_choices.settle(job.id, first, f"{first}, as no trial can be made: {error.detail}"[:500])
        return
    if stage(comparison) is Stage.ENDED:
        choice = choose(job.spec, await table(store, comparison))
        await store.norm_choices.settle(job.id, choice.kind, choice.why)


async def _trials_of(store: Store, job: Job) -> Comparison:
    """Return the comparison of a job's trials, which is made where there is none."""
    claim = _claim(job.id)
    found = await store.comparisons.of_claim(job.project, claim)
    if found is not None:
        return found
    comparison_id, document, tried = new_id("cmp"), trial_document(job.spec), kinds(job.spec)
    specs = variants(document, "norm.kind", tried, comparison_id)
    parts = [NewVariant(kind, new_job_id(), spec) for kind, spec in zip(tried, specs, strict=True)]
    made, _ = await store.comparisons.create(NewComparison(comparison_id, job.project, "norm.kind", document, parts), claim)
    await store.jobs.explain([(job.id, CHOOSING_NORM, f"waits for the trials of {', '.join(tried)} in {made}")])
    created = await store.comparisons.get(made)
    assert created is not None  # made a moment ago, and deleted only when its jobs have ended
    return created


async def _cancel_trials(store: Store, job: Job) -> None:
    comparison = await store.comparisons.of_claim(job.project, _claim(job.id))
    for variant in () if comparison is None else comparison.variants:
        try:
            await jobs.cancel(store, variant.job_id)
        except (ConflictError, NotFoundError):  # it has ended, or has been deleted
            continue


def _claim(job_id: str) -> IdempotencyClaim:
    return IdempotencyClaim(f"norm.kind auto of {job_id}", "")
