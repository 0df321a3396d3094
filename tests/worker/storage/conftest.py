"""The storages that pass the same tests."""

import pytest

from tests.support.object_store import SCHEMES
from worker.storage.local import LocalStorage
from worker.storage.storage import Storage


@pytest.fixture(params=["local", *SCHEMES])
def storage(request, object_stores, tmp_path, monkeypatch) -> Storage:
    """An empty storage: a directory, or a place in a bucket of a real server."""
    if request.param == "local":
        return LocalStorage(tmp_path / "storage")
    store = object_stores(request.param).at_hand(monkeypatch)
    return store.open(store.address())
