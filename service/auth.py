"""Who may speak to the API: one token, made at the first start, known to the database by its digest and to its owner by a file."""

import logging
import os
import secrets
from pathlib import Path
from typing import Final

from service.errors import UnauthorizedError
from service.store.records import Token
from service.store.store import Store

PREFIX: Final = "sbn_"
FIRST_TOKEN_NAME: Final = "first"  # noqa: S105 - a name
_MAX_LENGTH: Final = 256

_log = logging.getLogger(__name__)


def new_token() -> str:
    """Return a token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


async def ensure_first_token(store: Store, path: Path) -> str | None:
    """See to it that the token file holds a token which the store admits.

    Args:
        store: where the digests are.
        path: the token file; its directory is made where it is missing.
    Returns:
        A new token, to be shown to the owner once; None where the one in the file is good.
    """
    present = _read(path)
    if present is not None and await store.tokens.find(present) is not None:
        return None
    if present is not None:
        # The database is a new one: a file that no longer opens anything would only puzzle its owner.
        _log.warning("the token in %s is not in the database; it is replaced by a new one", path)
        path.unlink()  # noqa: ASYNC240 - one small file, before the first request
    elif await store.tokens.is_any():
        _log.warning("the token file %s is gone; a new token is made, and the earlier one stays valid", path)
    token = new_token()
    await store.tokens.add(token, FIRST_TOKEN_NAME)
    _write(path, token)
    return token


async def authenticate(store: Store, header: str | None) -> Token:
    """Return what is known of the bearer.

    Raises:
        UnauthorizedError: no header, another scheme, or a token that is not admitted.
    """
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthorizedError(
            "no token; expected the header Authorization: Bearer TOKEN; the token is in the file `token` of SYNCBN_HOME"
        )
    found = await store.tokens.find(token.strip()) if len(token) <= _MAX_LENGTH else None
    if found is None:
        raise UnauthorizedError("this token is not admitted; expected one that this service made; see the file `token` of SYNCBN_HOME")
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None


def _write(path: Path, token: str) -> None:
    """Create the file with its mode, so that at no moment it can be read by others."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
