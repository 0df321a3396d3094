"""Fixtures of the service's tests: a real store on a real file."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from service.store.store import Store
from tests.support.postgres import PostgresServer, binaries, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests of the session; each has a database of its own."""
    _require_postgres()
    with postgres_server(flushes=False) as server:
        yield server


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """A server for one test, which may kill it."""
    _require_postgres()
    with postgres_server() as server:
        yield server


def _require_postgres() -> None:
    if binaries() is None:
        pytest.skip("no PostgreSQL programs here: install postgresql, which brings initdb and postgres")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Where this test's database is."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def with_store(database_url: str) -> Callable[[Callable[[Store], Awaitable[None]]], None]:
    """Run a scenario with an open store; called again, with the same database opened anew."""

    def run(scenario: Callable[[Store], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with await Store.open(database_url) as store:
                await asyncio.wait_for(scenario(store), 20)

        asyncio.run(whole())

    return run
