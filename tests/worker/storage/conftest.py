"""The storages that pass the same tests."""

import pytest

from worker.storage.local import LocalStorage


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    """An empty storage: a directory, or a place in a bucket of a real S3 server."""
    if request.param == "local":
        return LocalStorage(tmp_path / "storage")
    store = request.getfixturevalue("object_store")
    return store.open(store.address())
