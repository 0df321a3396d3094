"""Uploaded code: which bundle belongs to whom. The archives themselves are in the storage."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict

from sqlalchemy import ColumnElement, delete, exists, func, insert, select, update

from service.store.clock import days_ago
from service.store.database import Database
from service.store.records import Bundle
from service.store.session import Write
from service.store.tables import bundles, code_uses


class CodeGoneError(LookupError):
    """The code that a job names is not here any more. Uploading it again helps."""


class Bundles:
    """Queries about bundles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, bundle: Bundle) -> tuple[Bundle, bool]:
        """Store a bundle, unless its project has the same files already.

        Returns:
            The bundle that is stored now, as one uploaded just now, and whether it is new.
        """
        is_same = (bundles.c.project == bundle.project) & (bundles.c.sha256 == bundle.sha256)
        async with self._database.write(_scope(bundle.sha256)) as write:
            again = update(bundles).where(is_same).values(uploaded_at=bundle.uploaded_at).returning(*bundles.c)
            row = (await write.connection.execute(again)).mappings().one_or_none()
            if row is not None:
                return Bundle(**row), False
            await write.connection.execute(insert(bundles).values(**asdict(bundle)))
        return bundle, True

    async def get(self, bundle_id: str) -> Bundle | None:
        """Return a bundle, or None where there is none of that id."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(bundles).where(bundles.c.id == bundle_id))).mappings().one_or_none()
        return None if row is None else Bundle(**row)

    async def page(self, before: str | None, limit: int, project: str | None) -> list[Bundle]:
        """Return up to `limit` bundles of a project (of all, where None), newest first, older than the bundle `before`."""
        query = select(bundles).order_by(bundles.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(bundles.c.id < before)
        if project is not None:
            query = query.where(bundles.c.project == project)
        async with self._database.read() as connection:
            return [Bundle(**row) for row in (await connection.execute(query)).mappings()]

    async def num_jobs(self, bundle_id: str) -> int:
        """Return how many jobs name a bundle."""
        query = select(func.count()).select_from(code_uses).where(code_uses.c.bundle_id == bundle_id)
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def old(self, days: int) -> list[Bundle]:
        """Return the bundles that no job names and that were uploaded last more than so many days ago."""
        query = select(bundles).where(~_is_used(), bundles.c.uploaded_at < days_ago(days)).order_by(bundles.c.id)
        async with self._database.read() as connection:
            return [Bundle(**row) for row in (await connection.execute(query)).mappings()]

    async def remove(self, bundle: Bundle, remove_archive: Callable[[], Awaitable[None]]) -> bool:
        """Delete a bundle that no job names and that was not uploaded again meanwhile; return whether it was deleted.

        Args:
            bundle: as it was read.
            remove_archive: called where no other project has the same archive, while nobody can add it.
        """
        is_meant = (bundles.c.id == bundle.id) & (bundles.c.uploaded_at == bundle.uploaded_at)
        async with self._database.write(_scope(bundle.sha256)) as write:
            # Locked first: a job that is being stored with it either is seen here, or finds it gone.
            found = await write.connection.execute(select(bundles.c.id).where(is_meant).with_for_update())
            if found.one_or_none() is None:
                return False
            if (await write.connection.execute(delete(bundles).where(is_meant, ~_is_used()))).rowcount == 0:
                return False
        # In a transaction of its own: cut off in between, a file is left that nobody names, not a name without a file.
        async with self._database.write(_scope(bundle.sha256), is_alone=True) as write:
            alike = select(bundles.c.id).where(bundles.c.sha256 == bundle.sha256).limit(1)
            if (await write.connection.execute(alike)).one_or_none() is None:
                await remove_archive()
        return True


async def use_bundle(write: Write, job_id: str, bundle_id: str) -> None:
    """Store that a new job names a bundle, which nobody can remove from here on.

    Raises:
        CodeGoneError: it has been removed meanwhile.
    """
    # Locked, so that it is there until the job is.
    found = await write.connection.execute(select(bundles.c.id).where(bundles.c.id == bundle_id).with_for_update(read=True))
    if found.one_or_none() is None:
        raise CodeGoneError(bundle_id)
    await write.connection.execute(insert(code_uses).values(job_id=job_id, bundle_id=bundle_id))


def _is_used() -> ColumnElement[bool]:
    return exists().where(code_uses.c.bundle_id == bundles.c.id)


def _scope(sha256: str) -> str:
    """One archive is stored once for all projects, so what is written about it comes one after the other."""
    return f"code/{sha256}"
