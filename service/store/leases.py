"""Leases: which controller looks after what, for how long, by the database's clock.

A lease has a name (`job/ID`, `scheduler`), a holder (one life of one controller) and a term that only grows. It is taken when it has run
out, renewed while its holder lives, and every write made under it is refused once it is lost (`Database.under`).
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import delete, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.store.clock import database_now
from service.store.database import Database
from service.store.records import Lease
from service.store.tables import leases

_MICROSECONDS: Final = 1_000_000


class Leases:
    """Queries about leases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, names: Collection[str], holder: str, ttl_s: float) -> dict[str, Lease]:
        """Take those of the leases that are free, have run out, or are the holder's own; each with a new term.

        Args:
            names: which are wanted.
            holder: who wants them.
            ttl_s: for how long.
        Returns:
            By name, those that were had.
        """
        if not names:
            return {}
        async with self._database.write("leases") as write:
            insert = sqlite.insert if write.connection.dialect_name == "sqlite" else postgresql.insert
            until = database_now() + literal(int(ttl_s * _MICROSECONDS))
            rows = [{"name": name, "holder": holder, "term": 1, "expires_at": until} for name in sorted(set(names))]
            statement = insert(leases).values(rows)
            statement = statement.on_conflict_do_update(
                index_elements=["name"],
                set_={"holder": holder, "term": leases.c.term + 1, "expires_at": until},
                where=or_(leases.c.expires_at <= database_now(), leases.c.holder == holder),
            )
            found = await write.connection.execute(statement.returning(leases.c.name, leases.c.term))
            return {row.name: Lease(row.name, holder, row.term) for row in found}

    async def renew(self, holder: str, ttl_s: float) -> set[str]:
        """Prolong every lease of a holder that has not run out; return their names. What is missing was lost."""
        async with self._database.write("leases") as write:
            mine = (leases.c.holder == holder) & (leases.c.expires_at > database_now())
            until = database_now() + literal(int(ttl_s * _MICROSECONDS))
            found = await write.connection.execute(update(leases).where(mine).values(expires_at=until).returning(leases.c.name))
            return set(found.scalars())

    async def give_back(self, holder: str, names: Collection[str] | None = None) -> None:
        """Let others take leases at once, if they are still the holder's; None: all that are."""
        mine = leases.c.holder == holder
        async with self._database.write("leases") as write:
            await write.connection.execute(delete(leases).where(mine if names is None else mine & leases.c.name.in_(list(names))))

    async def clear(self) -> None:
        """End every lease: for a database that only this process can have, where every other holder is dead."""
        async with self._database.write("leases") as write:
            await write.connection.execute(delete(leases))

    async def held(self) -> dict[str, str]:
        """Return, by lease, the holder of every lease that has not run out."""
        query = select(leases.c.name, leases.c.holder).where(leases.c.expires_at > database_now())
        async with self._database.read() as connection:
            return {row.name: row.holder for row in await connection.execute(query)}
