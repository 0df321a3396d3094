"""API tokens, as digests: whoever reads the database learns no token."""

import hashlib
from datetime import UTC, datetime

from sqlalchemy import exists, insert, select

from service.store.database import Database
from service.store.records import Token
from service.store.tables import tokens


class Tokens:
    """Queries about tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, token: str, name: str) -> None:
        """Admit a token."""
        row = {"sha256": _digest(token), "name": name, "created_at": datetime.now(UTC)}
        async with self._database.write("tokens") as write:
            await write.connection.execute(insert(tokens).values(**row))

    async def find(self, token: str) -> Token | None:
        """Return what is known of a token, or None where it is not admitted.

        Found by its SHA-256, so the time that it takes says nothing about how much of a guess was right.
        """
        query = select(tokens.c.name, tokens.c.created_at).where(tokens.c.sha256 == _digest(token))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Token(row.name, row.created_at)

    async def is_any(self) -> bool:
        """Return whether any token is admitted."""
        async with self._database.read() as connection:
            return bool((await connection.execute(select(exists(tokens.select())))).scalar_one())


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
