"""Tests of service/store/tokens.py."""

from datetime import UTC, datetime

from service.scopes import Scope
from service.store.ids import new_id
from service.store.records import Token

SECRET = "sbn_" + "a" * 43


def _token() -> Token:
    return Token(new_id("tok"), "t", "default", frozenset({Scope.READ}), datetime.now(UTC))


def test_a_token_that_was_just_found_is_revoked_at_once(with_store):
    """What is remembered of a token does not outlive its revocation, in SQLite and in PostgreSQL."""

    async def scenario(store):
        token = _token()
        await store.tokens.add(SECRET, token)
        assert (await store.tokens.find(SECRET)).revoked_at is None
        assert (await store.tokens.find(SECRET)).revoked_at is None

        await store.tokens.revoke(token.id, datetime.now(UTC))

        assert (await store.tokens.find(SECRET)).revoked_at is not None

    with_store(scenario)


def test_a_token_is_remembered_only_where_nobody_else_can_revoke_it(with_store, monkeypatch):
    """A second look at a token asks the database again exactly where other controllers share it."""

    async def scenario(store):
        await store.tokens.add(SECRET, _token())
        await store.tokens.find(SECRET)
        looks = []
        read = store.tokens._database.read
        monkeypatch.setattr(store.tokens._database, "read", lambda: looks.append(1) or read())

        await store.tokens.find(SECRET)

        assert bool(looks) is store.tokens._database.is_shared

    with_store(scenario)
