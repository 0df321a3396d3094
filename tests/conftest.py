"""Fixtures for all tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.object_store import ObjectStore, running_object_store

# The same examples in every run, so that a test fails for what was changed; HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def object_store_server(tmp_path_factory) -> Iterator[ObjectStore]:
    """An S3 server on the loopback."""
    with running_object_store(tmp_path_factory.mktemp("object-store")) as running:
        yield running


@pytest.fixture
def object_store(object_store_server, monkeypatch) -> ObjectStore:
    """The server, with its profile and credentials in the environment, where an operator has them."""
    for name, value in object_store_server.environment.items():
        monkeypatch.setenv(name, value)
    return object_store_server
