"""Fixtures of the tests across hosts."""

from collections.abc import Iterator

import pytest

from tests.support.hosts import Host, two_hosts, why_not


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts on one switch, with which a test may do what it likes."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts() as made:
        yield made
