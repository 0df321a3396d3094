"""Fixtures of the service's tests: a real store on a real file, and the command line beside a live service."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import reading
from service.cli.app import app
from service.store.store import Store
from tests.support.live_service import live_service
from tests.support.postgres import PostgresServer, binaries, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests of the session; each has a database of its own."""
    _require_postgres()
    with postgres_server(flushes=False) as server:
        yield server


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many bytes `service.reading` took digests, each time."""
    fed = []

    class Counting:
        def __init__(self) -> None:
            self._digest = hashlib.sha256()

        def update(self, chunk: bytes) -> None:
            fed.append(len(chunk))
            self._digest.update(chunk)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    monkeypatch.setattr(reading, "hashlib", type("hashlib", (), {"sha256": Counting}))
    return fed


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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One live service for the module."""
    with live_service(tmp_path_factory.mktemp("home")) as service:
        yield service


@pytest.fixture
def run(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command on the service's machine, in an empty directory, with the token given or the home's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNCBN_HOME", str(service.home))
    monkeypatch.delenv("SYNCBN_URL", raising=False)
    monkeypatch.delenv("SYNCBN_TOKEN", raising=False)

    def invoke(*args: Any, stdin: str | None = None, token: str = "") -> Any:
        if token:
            monkeypatch.setenv("SYNCBN_TOKEN", token)
        try:
            return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, prog_name="syncbn")
        finally:
            if token:
                monkeypatch.delenv("SYNCBN_TOKEN")

    return invoke
