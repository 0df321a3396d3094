"""Every kind of identity that can ask: what it holds in its hand, and what the service knows of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from service.auth import create_token, new_secret, revoke_token
from service.scopes import Scope
from service.store.ids import new_id
from service.store.records import Token
from tests.service.api.world import World

OTHER = "other"


def bearer(secret: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"Authorization": f"Bearer {secret}"}


def token(world: World, *scopes: Scope, project: str = "default") -> dict[str, str]:
    """Make a token; return its header."""
    return bearer(world.call(create_token, world.store, "t", project, scopes, None)[0])


def strangers(world: World) -> dict[str, dict[str, str]]:
    """Return the headers of those who are not admitted at all."""
    secret, revoked = world.call(create_token, world.store, "revoked", "default", [Scope.ADMIN], None)
    world.call(revoke_token, world.store, revoked.id)
    return {"nobody": {}, "unknown": bearer(new_secret()), "revoked": bearer(secret), "expired": bearer(_expired(world))}


def _expired(world: World) -> Any:
    secret, now = new_secret(), datetime.now(UTC)
    old = Token(new_id("tok"), "expired", "default", frozenset({Scope.ADMIN}), now - timedelta(2), now - timedelta(1))
    world.call(world.store.tokens.add, secret, old)
    return secret
