"""Tests of service/auth.py and service/store/tokens.py."""

import os
import re
import sqlite3
import stat
from pathlib import Path

import pytest

from service.auth import authenticate, ensure_first_token
from service.errors import UnauthorizedError


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


@pytest.mark.parametrize("content", ["sbn_of_another_database", "", "\xff\x00"])
def test_a_file_that_opens_nothing_is_replaced(with_store, path, content, caplog):
    """The database is a new one."""
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))

    async def scenario(store):
        token = await ensure_first_token(store, path)
        assert path.read_text().strip() == token
        assert "is not in the database" in caplog.text

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
