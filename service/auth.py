"""Who may speak to the API, and for which project: makes, admits, renews and revokes tokens.

A token is known to the database by its digest and to its owner by what was shown once. The first one is made at the first start and is
in a file of the home; it may do everything. Owns no HTTP: which route needs which scope is declared beside the route.
"""

import logging
import os
import re
import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from service.errors import ForbiddenError, NotFoundError, UnauthorizedError
from service.scopes import DEFAULT_PROJECT, Scope
from service.store.ids import new_id
from service.store.records import Token
from service.store.store import Store

PREFIX: Final = "sbn_"
FIRST_TOKEN_NAME: Final = "first"  # noqa: S105 - a name
_WHOLE: Final = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
_MAX_LENGTH: Final = 256

_log = logging.getLogger(__name__)


def new_secret() -> str:
    """Return a token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


async def ensure_first_token(store: Store, path: Path) -> str | None:
    """See to it that the token file holds a token which the store admits.

    A well-formed token in the file of a home whose database has never had one is taken over: so `write_first_token`, or whoever puts the
    file there, provides the first token.

    Args:
        store: where the digests are.
        path: the token file; its directory is made where it is missing.
    Returns:
        A new token, to be shown to the owner once; None where the one in the file is good.
    """
    present = _read(path)
    known = None if present is None else await store.tokens.find(present)
    if known is not None and known.is_live(datetime.now(UTC)):
        return None
    is_first = not await store.tokens.is_any()
    if present is not None and is_first and _WHOLE.fullmatch(present):
        await store.tokens.add(present, _first())
        return None
    if present is not None:
        # The database is a new one, or the token has been revoked: a file that opens nothing would only puzzle its owner.
        _log.warning("the token in %s is not in the database or not admitted any more; it is replaced by a new one", path)
        path.unlink()  # noqa: ASYNC240 - one small file, before the first request
    elif not is_first:
        _log.warning("the token file %s is gone; a new token is made, and the earlier one stays valid", path)
    secret = write_first_token(path)
    await store.tokens.add(secret, _first())
    return secret


def write_first_token(path: Path) -> str:
    """Make a token and put it into the token file, which must not be there; return it.

    The file is created with its mode, so that at no moment it can be read by others.
    """
    secret = new_secret()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    return secret


async def authenticate(store: Store, header: str | None) -> Token:
    """Return what is known of the bearer.

    Raises:
        UnauthorizedError: no header, another scheme, or a token that is not admitted: unknown, expired or revoked, which is not told apart.
    """
    scheme, _, secret = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise UnauthorizedError(
            "no token; expected the header Authorization: Bearer TOKEN; the token is in the file `token` of SYNCBN_HOME"
        )
    found = await store.tokens.find(secret.strip()) if len(secret) <= _MAX_LENGTH else None
    if found is None or not found.is_live(datetime.now(UTC)):
        raise UnauthorizedError(
            "this token is not admitted; expected one that this service made and that is neither expired nor revoked; see the file `token` "
            "of SYNCBN_HOME, or ask for a new one"
        )
    return found


async def is_still_admitted(store: Store, token: Token) -> bool:
    """Return whether a token that was admitted is so now."""
    found = await store.tokens.get(token.id)
    return found is not None and found.is_live(datetime.now(UTC))


def require(token: Token, scope: Scope, why: str = "this request needs it") -> None:
    """Raise ForbiddenError where a token lacks a scope."""
    if not token.may(scope):
        has = ", ".join(sorted(token.scopes))
        raise ForbiddenError(f"token {token.id} has the scopes {has}; expected {scope}: {why}; use a token that has it")


async def create_token(store: Store, name: str, project: str, scopes: Collection[Scope], expires_at: datetime | None) -> tuple[str, Token]:
    """Make and admit a token; return it, to be shown once, and what is known of it."""
    secret, token = new_secret(), Token(new_id("tok"), name, project, frozenset(scopes), datetime.now(UTC), expires_at)
    await store.tokens.add(secret, token)
    return secret, token


async def rotate_token(store: Store, token_id: str, overlap: timedelta) -> tuple[str, Token]:
    """Make a token like another one, with a lifetime as long, and have the other end after `overlap`, unless it ends before.

    Raises:
        NotFoundError: there is none such, or it is revoked.
    """
    old, now = await _find(store, token_id), datetime.now(UTC)
    expires_at = None if old.expires_at is None else now + (old.expires_at - old.created_at)
    secret, token = new_secret(), Token(new_id("tok"), old.name, old.project, old.scopes, now, expires_at)
    if not await store.tokens.replace(secret, token, old.id, expires_at=now + overlap):
        raise _not_here(token_id)
    return secret, token


async def revoke_token(store: Store, token_id: str) -> None:
    """Admit a token no more. Doing it again changes nothing.

    Raises:
        NotFoundError: there is none such.
    """
    if not await store.tokens.revoke(token_id, datetime.now(UTC)):
        raise _not_here(token_id)


async def _find(store: Store, token_id: str) -> Token:
    token = await store.tokens.get(token_id)
    if token is None:
        raise _not_here(token_id)
    return token


def _not_here(token_id: str) -> NotFoundError:
    detail = f"token {token_id} is not here, or revoked; expected the id of a token that is admitted; GET /v1/tokens lists them"
    return NotFoundError(detail, code="token_not_found")


def _first() -> Token:
    return Token(new_id("tok"), FIRST_TOKEN_NAME, DEFAULT_PROJECT, frozenset({Scope.ADMIN}), datetime.now(UTC))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
