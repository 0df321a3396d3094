"""Fixtures of the API's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.api.world import World, running


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A running application on a home of its own."""
    with running(tmp_path) as world:
        yield world
