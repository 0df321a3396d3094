"""Fixtures of the worker's tests: one pool of processes for all of them."""

from collections.abc import Iterator

import pytest

from tests.support.ranks import RankPool


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Processes that form gangs of up to three ranks."""
    with RankPool() as running:
        yield running
