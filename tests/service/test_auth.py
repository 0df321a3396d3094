"""Tests of service/auth.py and service/store/tokens.py."""

import os
import re
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.auth import authenticate, create_token, ensure_first_token, new_secret, require, revoke_token, rotate_token, write_first_token
from service.errors import ForbiddenError, NotFoundError, UnauthorizedError
from service.scopes import Scope
from service.store.ids import new_id
from service.store.records import Token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the token file goes; its directory is not there yet."""
    return tmp_path / "home" / "token"


def test_the_first_start_makes_a_token_that_only_its_owner_can_read(with_store, path):
    """256 random bits in a file of mode 0600, whatever the umask."""

    async def scenario(store):
        before = os.umask(0)
        try:
            token = await ensure_first_token(store, path)
        finally:
            os.umask(before)
        assert re.fullmatch(r"sbn_[A-Za-z0-9_-]{43}", token)
        assert path.read_text() == token + "\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await authenticate(store, f"Bearer {token}")).name == "first"
        assert await authenticate(store, f"bearer  {token}")

    with_store(scenario)


def test_the_second_start_keeps_the_token(with_store, path):
    """Shown once."""

    async def scenario(store):
        token = await ensure_first_token(store, path)
        assert await ensure_first_token(store, path) is None
        assert path.read_text().strip() == token

    with_store(scenario)


def test_the_database_does_not_know_the_token(with_store, path, database_url):
    """Who reads it learns nothing."""
    with_store(lambda store: ensure_first_token(store, path))
    token = path.read_text().strip()
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
        content = "\n".join(connection.iterdump())
    connection.close()

    assert "sha256" in content
    assert token not in content
    assert token.removeprefix("sbn_") not in content


def test_a_lost_file_gets_a_new_token_and_the_old_one_stays_valid(with_store, path, caplog):
    """Whoever uses the old one is not locked out; the log says so."""

    async def scenario(store):
        old = await ensure_first_token(store, path)
        path.unlink()
        new = await ensure_first_token(store, path)
        assert new not in {None, old}
        assert await authenticate(store, f"Bearer {old}")
        assert await authenticate(store, f"Bearer {new}")
        assert "the token file" in caplog.text
        assert new not in caplog.text

    with_store(scenario)


@pytest.mark.parametrize("content", ["sbn_of_another_database", "", "\xff\x00", "Sbn_" + "x" * 43, "sbn_" + "x" * 44])
def test_a_file_that_opens_nothing_is_replaced(with_store, path, content, caplog):
    """The database is a new one."""
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))

    async def scenario(store):
        token = await ensure_first_token(store, path)
        assert path.read_text().strip() == token
        assert "is not in the database" in caplog.text
        assert (await authenticate(store, f"Bearer {token}")).is_admin

    with_store(scenario)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic x", "Bearer sbn_wrong", "Bearer \ud800", "Bearer " + "x" * 10_000]
)
def test_anything_else_is_not_admitted(with_store, path, header):
    """And the error tells where the token is."""

    async def scenario(store):
        await ensure_first_token(store, path)
        with pytest.raises(UnauthorizedError, match="SYNCBN_HOME"):
            await authenticate(store, header)

    with_store(scenario)


def test_a_link_in_the_place_of_the_file_is_not_followed(with_store, path, tmp_path):
    """Nobody gets the token written to where they like."""
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        with_store(lambda store: ensure_first_token(store, path))
    assert not (tmp_path / "elsewhere").exists()


def test_a_token_that_was_put_there_before_the_first_start_is_taken(with_store, path):
    """`syncbn tokens init`, or a mounted secret: the service makes no other one."""
    secret = write_first_token(path)

    async def scenario(store):
        assert await ensure_first_token(store, path) is None
        assert (await authenticate(store, f"Bearer {secret}")).is_admin
        assert path.read_text().strip() == secret

    with_store(scenario)


def test_a_revoked_token_in_the_file_is_never_admitted_again(with_store, path):
    """Also where it was the only one that there ever was."""

    async def scenario(store):
        old = await ensure_first_token(store, path)
        await revoke_token(store, (await authenticate(store, f"Bearer {old}")).id)
        new = await ensure_first_token(store, path)
        assert new not in {None, old}
        with pytest.raises(UnauthorizedError):
            await authenticate(store, f"Bearer {old}")
        assert await authenticate(store, f"Bearer {new}")

    with_store(scenario)


def test_an_expired_token_is_not_admitted(with_store):
    """To the moment; a token without an end is admitted for ever."""
    end = datetime(2026, 1, 1, tzinfo=UTC)
    token = Token(new_id("tok"), "t", "default", frozenset({Scope.READ}), end - timedelta(days=1), end)
    assert token.is_live(end - timedelta(microseconds=1))
    assert not token.is_live(end)

    async def scenario(store):
        secret = new_secret()
        await store.tokens.add(secret, token)
        with pytest.raises(UnauthorizedError, match="expired"):
            await authenticate(store, f"Bearer {secret}")
        secret, made = await create_token(store, "t", "default", {Scope.READ}, None)
        assert await authenticate(store, f"Bearer {secret}") == made

    with_store(scenario)


def test_a_rotated_token_lives_as_long_as_the_old_one_which_ends_after_the_overlap(with_store):
    """Both are admitted meanwhile; an end that was nearer stays."""

    async def scenario(store):
        secret, old = await create_token(store, "ci", "vision", {Scope.READ, Scope.SUBMIT}, datetime.now(UTC) + timedelta(days=90))
        renewed, new = await rotate_token(store, old.id, timedelta(hours=1))
        assert (new.name, new.project, new.scopes) == (old.name, old.project, old.scopes)
        assert new.expires_at - new.created_at == old.expires_at - old.created_at
        assert (await authenticate(store, f"Bearer {renewed}")) == new
        end = (await authenticate(store, f"Bearer {secret}")).expires_at
        assert timedelta(minutes=59) < end - datetime.now(UTC) <= timedelta(hours=1)
        await rotate_token(store, old.id, timedelta(days=5))
        assert (await authenticate(store, f"Bearer {secret}")).expires_at == end
        await rotate_token(store, old.id, timedelta(0))
        with pytest.raises(UnauthorizedError):
            await authenticate(store, f"Bearer {secret}")

    with_store(scenario)


def test_what_is_revoked_or_unknown_cannot_be_rotated(with_store):
    """And revoking twice is revoking once."""

    async def scenario(store):
        _, token = await create_token(store, "t", "default", {Scope.READ}, None)
        await revoke_token(store, token.id)
        await revoke_token(store, token.id)
        for token_id in (token.id, new_id("tok")):
            with pytest.raises(NotFoundError, match=token_id):
                await rotate_token(store, token_id, timedelta(0))
        with pytest.raises(NotFoundError):
            await revoke_token(store, new_id("tok"))

    with_store(scenario)


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_contains_no_other_but_admin_contains_all(scope):
    """Who may submit may not read, unless the token says so too."""

    def token(*scopes):
        return Token(new_id("tok"), "t", "default", frozenset(scopes), datetime.now(UTC))

    for other in Scope:
        assert token(scope).may(other) is (other is scope or scope is Scope.ADMIN)
    require(token(Scope.ADMIN), scope)
    with pytest.raises(ForbiddenError, match="expected"):
        require(token(), scope)
