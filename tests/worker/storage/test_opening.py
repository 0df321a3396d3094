"""Tests of worker/storage/opening.py: which address is which storage. What is refused: test_objects.py."""

from pathlib import Path

import pytest

from worker.storage.local import LocalStorage
from worker.storage.opening import local_path, open_storage


@pytest.mark.parametrize("address", ["/data/my jobs", "file:///data/my%20jobs", "file://localhost/data/my%20jobs"])
def test_a_local_directory_in_three_spellings(address):
    """All the same place."""
    assert open_storage(address) == LocalStorage(Path("/data/my jobs"))


def test_an_object_store_is_no_directory():
    """So nobody makes one of that name."""
    assert local_path("s3://bucket/prefix") is None
