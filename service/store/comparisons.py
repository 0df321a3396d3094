"""Comparisons: jobs that were submitted together to be compared. Owns which jobs those are; the jobs are ordinary ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping, delete, insert, select

from service.states import State
from service.store.database import Database
from service.store.idempotency import KeyReusedError
from service.store.jobs import add_job
from service.store.queue import QueueCap, require_place
from service.store.records import Comparison, IdempotencyClaim, Variant
from service.store.session import Session, Write
from service.store.tables import comparisons, jobs, variants
from worker.contract import JobSpec


@dataclass(frozen=True)
class NewVariant:
    """One job to be of a comparison: the field's value, the spec that has it, and the limits on queued jobs that it must keep."""

    value: Any
    job_id: str
    spec: JobSpec
    caps: Sequence[QueueCap] = ()


@dataclass(frozen=True)
class NewComparison:
    """A comparison to be stored."""

    id: str
    project: str
    field: str
    document: dict[str, Any]
    variants: Sequence[NewVariant]
    submitter: str = ""
    """The name of the token that its jobs are submitted with."""


class Comparisons:
    """Queries about comparisons."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewComparison, claim: IdempotencyClaim | None = None) -> tuple[str, bool]:
        """Store a comparison and its jobs, queued, in one transaction; unless the same request has made one before.

        Returns:
            The comparison's id, and whether it is new.
        Raises:
            KeyReusedError: the key was used for a different comparison.
            QueueFullError: not all of the jobs have a place in the queue; none is stored.
        """
        async with self._database.write(new.id if claim is None else f"comparison-key/{new.project}/{claim.key}") as write:
            if claim is not None:
                earlier = await _earlier(write, new.project, claim)
                if earlier is not None:
                    return earlier, False
            await write.connection.execute(insert(comparisons).values(**_row(new, claim)))
            for number, variant in enumerate(new.variants):
                for cap in variant.caps:
                    await require_place(write, cap)
                await add_job(write, variant.job_id, variant.spec, new.project, new.submitter)
                row = {"comparison_id": new.id, "number": number, "value": variant.value, "job_id": variant.job_id}
                await write.connection.execute(insert(variants).values(**row))
        return new.id, True

    async def get(self, comparison_id: str) -> Comparison | None:
        """Return a comparison, or None where there is none of that id."""
        async with self._database.read() as session:
            query = select(comparisons).where(comparisons.c.id == comparison_id)
            found = await _with_variants(session, list((await session.execute(query)).mappings()))
        return found[0] if found else None

    async def of_claim(self, project: str, claim: IdempotencyClaim) -> Comparison | None:
        """Return the comparison that a request for a project made, or None."""
        async with self._database.read() as session:
            query = select(comparisons).where(comparisons.c.project == project, comparisons.c.idempotency_key == claim.key)
            found = await _with_variants(session, list((await session.execute(query)).mappings()))
        return found[0] if found else None

    async def page(self, before: str | None, limit: int, project: str | None = None) -> list[Comparison]:
        """Return up to `limit` comparisons of a project (of all, where None), newest first, older than the comparison `before`."""
        query = select(comparisons).order_by(comparisons.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(comparisons.c.id < before)
        if project is not None:
            query = query.where(comparisons.c.project == project)
        async with self._database.read() as session:
            return await _with_variants(session, list((await session.execute(query)).mappings()))

    async def delete(self, comparison_id: str) -> None:
        """Delete a comparison. Its jobs stay."""
        async with self._database.write(comparison_id) as write:
            await write.connection.execute(delete(comparisons).where(comparisons.c.id == comparison_id))


async def _earlier(write: Write, project: str, claim: IdempotencyClaim) -> str | None:
    mine = (comparisons.c.project == project) & (comparisons.c.idempotency_key == claim.key)
    query = select(comparisons.c.id, comparisons.c.fingerprint).where(mine)
    row = (await write.connection.execute(query)).one_or_none()
    if row is None:
        return None
    if row.fingerprint != claim.fingerprint:
        raise KeyReusedError(claim.key)
    return str(row.id)


async def _with_variants(session: Session, rows: Sequence[RowMapping]) -> list[Comparison]:
    """Complete comparisons by their jobs, one query for all of them."""
    joined = select(variants, jobs.c.state).outerjoin(jobs, jobs.c.id == variants.c.job_id)
    query = joined.where(variants.c.comparison_id.in_([row["id"] for row in rows])).order_by(variants.c.comparison_id, variants.c.number)
    found: dict[str, list[Variant]] = {row["id"]: [] for row in rows}
    for row in (await session.execute(query)).mappings():
        state = None if row["state"] is None else State(row["state"])
        found[row["comparison_id"]].append(Variant(row["value"], row["job_id"], state))
    return [Comparison(row["id"], row["project"], row["field"], row["spec"], row["created_at"], tuple(found[row["id"]])) for row in rows]


def _row(new: NewComparison, claim: IdempotencyClaim | None) -> dict[str, Any]:
    key, fingerprint = (None, None) if claim is None else (claim.key, claim.fingerprint)
    names = {"id": new.id, "project": new.project, "field": new.field, "spec": new.document, "created_at": datetime.now(UTC)}
    return names | {"idempotency_key": key, "fingerprint": fingerprint}
