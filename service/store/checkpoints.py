"""The catalogue of published checkpoints. The files are elsewhere; what is here was announced after its rename."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import RowMapping, delete, insert, select

from service.states import TERMINAL, State
from service.store.database import Database
from service.store.journal import Entry, append
from service.store.records import Checkpoint
from service.store.session import Write
from service.store.tables import checkpoints, jobs
from service.store.upserts import upsert
from worker.contract import EventType, Manifest


class Checkpoints:
    """Queries about checkpoints."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, job_id: str) -> list[Checkpoint]:
        """Return a job's checkpoints, newest first."""
        query = select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step.desc())
        async with self._database.read() as connection:
            return [_checkpoint(row) for row in (await connection.execute(query)).mappings()]

    async def get(self, job_id: str, step: int) -> Checkpoint | None:
        """Return one checkpoint, or None."""
        query = select(checkpoints).where((checkpoints.c.job_id == job_id) & (checkpoints.c.step == step))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else _checkpoint(row)

    async def jobs(self, before: str | None, limit: int) -> list[str]:
        """Return up to `limit` jobs that have checkpoints, newest first, older than the job `before`."""
        query = select(checkpoints.c.job_id).distinct().order_by(checkpoints.c.job_id.desc()).limit(limit)
        query = query if before is None else query.where(checkpoints.c.job_id < before)
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def drop(self, job_id: str, step: int) -> None:
        """Take one checkpoint from the list, and tell those who follow the job, unless it has ended: `end` stays the last event."""
        async with self._database.write(job_id) as write:
            await drop_steps(write, job_id, [step])
            state = (await write.connection.execute(select(jobs.c.state).where(jobs.c.id == job_id))).scalar_one_or_none()
            if state is not None and State(state) not in TERMINAL:
                await append(write, job_id, [Entry(at=datetime.now(UTC), type=EventType.PRUNED, attempt=None, data={"steps": [step]})])

    async def replace(self, job_id: str, manifests: Sequence[Manifest]) -> None:
        """List exactly these checkpoints of a job. Does nothing for a job that is gone."""
        rows = [_row(job_id, one, one.model_dump(mode="json")) for one in manifests]
        async with self._database.write(job_id) as write:
            if (await write.connection.execute(select(jobs.c.id).where(jobs.c.id == job_id))).one_or_none() is None:
                return
            await write.connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job_id))
            if rows:
                await write.connection.execute(insert(checkpoints), rows)
                write.catalogued.add(job_id)


async def take_manifest(write: Write, job_id: str, data: dict[str, Any], fence: int) -> bool:
    """Store the data of a checkpoint event. A step that was written again replaces its manifest.

    Returns:
        False where the data is no manifest of this job and this fence, so that the catalogue holds only what can be read back.
    """
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError:
        return False
    if manifest.job_id != job_id or manifest.fence != fence:
        return False
    await upsert(write, checkpoints, [_row(job_id, manifest, data)])
    write.catalogued.add(job_id)
    return True


async def drop_steps(write: Write, job_id: str, steps: Sequence[int]) -> None:
    """Store the data of pruned events: the files of these steps are gone."""
    if steps:
        await write.connection.execute(delete(checkpoints).where((checkpoints.c.job_id == job_id) & checkpoints.c.step.in_(steps)))


def _row(job_id: str, manifest: Manifest, document: dict[str, Any]) -> dict[str, Any]:
    return {"job_id": job_id, "step": manifest.step, "manifest": document, "size_bytes": manifest.size_bytes}


def _checkpoint(row: RowMapping) -> Checkpoint:
    return Checkpoint(row["job_id"], row["step"], Manifest.model_validate(row["manifest"]))
