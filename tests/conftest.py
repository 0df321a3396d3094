"""Fixtures for all tests."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.support.object_store import SCHEMES, ObjectStore, running_object_store

# The same examples in every run, so that a test fails for what was changed; HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def object_stores(tmp_path_factory) -> Iterator[Callable[[str], ObjectStore]]:
    """Object stores on the loopback by the scheme of their addresses, each started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda scheme: stack.enter_context(running_object_store(scheme, tmp_path_factory.mktemp(scheme))))


@pytest.fixture(params=SCHEMES)
def object_store(request, object_stores, monkeypatch) -> ObjectStore:
    """Each of them, with its profile and credentials in the environment, where an operator has them."""
    return object_stores(request.param).at_hand(monkeypatch)
