"""Uploaded code: which bundle belongs to whom. The archives themselves are in the storage."""

from dataclasses import asdict

from sqlalchemy import insert, select

from service.store.database import Database
from service.store.records import Bundle
from service.store.tables import bundles


class Bundles:
    """Queries about bundles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, bundle: Bundle) -> tuple[Bundle, bool]:
        """Store a bundle, unless its project has the same files already.

        Returns:
            The bundle that is stored now, and whether it is new.
        """
        is_same = (bundles.c.project == bundle.project) & (bundles.c.sha256 == bundle.sha256)
        async with self._database.write(f"code/{bundle.project}/{bundle.sha256}") as write:
            row = (await write.connection.execute(select(bundles).where(is_same))).mappings().one_or_none()
            if row is not None:
                return Bundle(**row), False
            await write.connection.execute(insert(bundles).values(**asdict(bundle)))
        return bundle, True

    async def get(self, bundle_id: str) -> Bundle | None:
        """Return a bundle, or None where there is none of that id."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(bundles).where(bundles.c.id == bundle_id))).mappings().one_or_none()
        return None if row is None else Bundle(**row)
