"""One pool of ranks for all tests of the library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ranks import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Processes that form gloo groups of any size."""
    with RankPool() as pool:
        yield pool
