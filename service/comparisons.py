"""What can be done with comparisons: start, show as a table, delete. Knows neither HTTP nor Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from service import jobs
from service.admission import admit
from service.artifacts import Artifacts
from service.comparison_table import Row, Stage, names_needed, row_of, row_of_deleted, stage
from service.errors import ConflictError, NotFoundError
from service.quotas import Quota
from service.store.bundles import CodeGoneError
from service.store.comparisons import NewComparison, NewVariant
from service.store.idempotency import KeyReusedError
from service.store.ids import new_id, new_job_id
from service.store.queue import QueueFullError
from service.store.records import Comparison, IdempotencyClaim, Token, Variant
from service.store.store import Store
from service.variants import variants
from worker.contract import JobSpec

MAX_POINTS: Final = 50
"""Of a series: shorter ones than 32 times as many are read whole, longer ones by the highs and lows of stretches (`store.rolls`)."""


@dataclass(frozen=True)
class Wish:
    """What is to be compared: a spec, a dotted path into it, and the values to put there."""

    spec: dict[str, Any]
    field: str
    values: Sequence[Any]


async def start(
    store: Store,
    artifacts: Artifacts,
    wish: Wish,
    owner: Token,
    *,
    roots: Sequence[str],
    quotas: Sequence[Quota],
    claim: IdempotencyClaim | None = None,
) -> tuple[Comparison, bool]:
    """Store one job for each value, alike but for that field; all of them or none, durably when this returns.

    Args:
        store: where the jobs go.
        artifacts: where checkpoints are that the spec may name.
        wish: what is to be compared.
        owner: who asks; every variant is held to what this token may have run.
        roots: where data may lie, as for `service.admission.admit`.
        quotas: limits on queued jobs.
        claim: the idempotency key, where there is one.
    Returns:
        The comparison, and whether it is new; it is not where the same request came before.
    Raises:
        InvalidError: a variant cannot be run, or the idempotency key belongs to another request.
        ForbiddenError: a variant runs code of the user's, and the token lacks the scope `code`.
        QuotaError: the queue has no place for all of the jobs.
    """
    comparison_id = new_id("cmp")
    specs = await admitted(store, artifacts, wish, owner, roots=roots, comparison_id=comparison_id)
    caps = [jobs.caps_of(spec, quotas, project=owner.project, submitter=owner.name) for spec in specs]
    parts = [NewVariant(value, new_job_id(), spec, some) for value, spec, some in zip(wish.values, specs, caps, strict=True)]
    try:
        new = NewComparison(comparison_id, owner.project, wish.field, wish.spec, parts, owner.name)
        found, is_new = await store.comparisons.create(new, claim)
    except (QueueFullError, KeyReusedError, CodeGoneError) as error:
        raise jobs.refusal(error) from error
    return await find(store, found), is_new


async def admitted(
    store: Store, artifacts: Artifacts, wish: Wish, owner: Token, *, roots: Sequence[str], comparison_id: str
) -> list[JobSpec]:
    """Return the spec of every variant with every default, or raise what `start` raises before it stores anything; but for quotas."""
    specs = variants(wish.spec, wish.field, wish.values, comparison_id)
    for spec in specs:
        await admit(store, spec, owner, roots)
        await jobs.check_references(artifacts, spec)
    return specs


async def find(store: Store, comparison_id: str) -> Comparison:
    """Return a comparison, or raise NotFoundError."""
    found = await store.comparisons.get(comparison_id)
    if found is None:
        raise not_here(comparison_id)
    return found


def not_here(comparison_id: str) -> NotFoundError:
    """Return the error for a comparison that there is not, or not for whoever asks."""
    expected = "expected the id of a comparison; GET /v1/comparisons lists them"
    return NotFoundError(f"comparison {comparison_id} is not here; {expected}", code="comparison_not_found")


async def table(store: Store, comparison: Comparison) -> list[Row]:
    """Return the rows of a comparison, in the order of its values."""
    return [await _row(store, variant) for variant in comparison.variants]


async def delete(store: Store, comparison_id: str) -> None:
    """Delete a comparison that is over. Its jobs stay.

    Raises:
        NotFoundError: no such comparison.
        ConflictError: some of its jobs have not ended.
    """
    comparison = await find(store, comparison_id)
    if stage(comparison) is not Stage.ENDED:
        detail = f"comparison {comparison_id} is {stage(comparison)}; expected one whose jobs have ended; cancel them first"
        raise ConflictError(detail, code="comparison_not_ended")
    await store.comparisons.delete(comparison_id)


async def _row(store: Store, variant: Variant) -> Row:
    job = await store.jobs.get(variant.job_id)
    if job is None:
        return row_of_deleted(variant.value, variant.job_id)
    series = {name: await store.metrics.points(job.id, name, MAX_POINTS) for name in names_needed(job)}
    newest = await store.checkpoints.of(job.id)
    return row_of(variant.value, job, series, newest[0].manifest.health if newest else None)
