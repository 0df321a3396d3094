"""Fixtures of the API's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.api.world import World, running


@pytest.fixture(scope="module")
def _application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("home")) as world:
        yield world


@pytest.fixture
def world(_application: World) -> Iterator[World]:
    """A running application, shared within a file: every test has jobs of its own in it."""
    headers = dict(_application.client.headers)
    yield _application
    _application.client.headers = headers


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[World]:
    """A running application in which nothing has happened yet."""
    with running(tmp_path) as world:
        yield world


@pytest.fixture
def stored(world):
    """A job with one checkpoint, the manifest, and the URL of its model file."""
    job_id = world.start()
    return job_id, world.checkpoint(job_id, 10, seq=1), f"/v1/jobs/{job_id}/checkpoints/10/files/model.safetensors"
