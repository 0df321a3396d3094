"""API tokens, as digests: whoever reads the database learns no token.

A revoked token stays as a row, so that it is never admitted again.
"""

import hashlib
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, exists, insert, select, update

from service.store.database import Database
from service.store.records import Token
from service.store.tables import tokens


class Tokens:
    """Queries about tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[int, Token]] = {}

    async def add(self, secret: str, token: Token) -> None:
        """Admit a token."""
        async with self._database.write("tokens") as write:
            write.is_token_changed = True
            await write.connection.execute(insert(tokens).values(**_row(secret, token)))

    async def replace(self, secret: str, token: Token, old_id: str, *, expires_at: datetime) -> bool:
        """Admit a token and have an earlier one end at `expires_at`, unless it ends before.

        Returns:
            False, and nothing is changed, where the earlier one is not admitted any more.
        """
        is_old = (tokens.c.id == old_id) & tokens.c.revoked_at.is_(None)
        lives_on = tokens.c.expires_at.is_(None) | (tokens.c.expires_at > expires_at)
        async with self._database.write("tokens") as write:
            write.is_token_changed = True
            if not (await write.connection.execute(select(exists().where(is_old)))).scalar_one():
                return False
            await write.connection.execute(update(tokens).where(is_old & lives_on).values(expires_at=expires_at))
            await write.connection.execute(insert(tokens).values(**_row(secret, token)))
        return True

    async def revoke(self, token_id: str, now: datetime) -> bool:
        """Admit a token no more, from now on. Return whether there is such a token."""
        is_live = (tokens.c.id == token_id) & tokens.c.revoked_at.is_(None)
        async with self._database.write("tokens") as write:
            write.is_token_changed = True
            await write.connection.execute(update(tokens).where(is_live).values(revoked_at=now))
            return bool((await write.connection.execute(select(exists().where(tokens.c.id == token_id)))).scalar_one())

    async def find(self, secret: str) -> Token | None:
        """Return what is known of a token, or None where there never was such a one.

        Found by its SHA-256, so the time that it takes says nothing about how much of a guess was right. Where no other controller can
        revoke it, a token is read once and remembered until this one makes, changes or revokes any: every request asks.
        """
        digest, edition = _digest(secret), self._database.tokens_edition
        known_at, known = self._known.get(digest, (-1, None))
        if known_at == edition:
            return known
        found = await self._one(tokens.c.sha256 == digest)
        if found is not None and not self._database.is_shared:
            # Of the edition before the query: what is revoked meanwhile is asked for again.
            self._known[digest] = (edition, found)
        return found

    async def get(self, token_id: str) -> Token | None:
        """Return a token by its id."""
        return await self._one(tokens.c.id == token_id)

    async def page(self, before: str | None, limit: int) -> list[Token]:
        """Return up to `limit` tokens, newest first, older than the token `before`; expired and revoked ones too."""
        query = select(tokens).order_by(tokens.c.id.desc()).limit(limit)
        query = query if before is None else query.where(tokens.c.id < before)
        async with self._database.read() as connection:
            return [_token(row) for row in (await connection.execute(query)).mappings()]

    async def is_any(self) -> bool:
        """Return whether there ever was a token."""
        async with self._database.read() as connection:
            return bool((await connection.execute(select(exists(tokens.select())))).scalar_one())

    async def _one(self, condition: Any) -> Token | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(tokens).where(condition))).mappings().one_or_none()
        return None if row is None else _token(row)


def _row(secret: str, token: Token) -> dict[str, Any]:
    return asdict(token) | {"sha256": _digest(secret), "scopes": sorted(token.scopes)}


def _token(row: RowMapping) -> Token:
    columns = {name: value for name, value in row.items() if name != "sha256"}
    return Token(**columns | {"scopes": frozenset(columns["scopes"])})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
