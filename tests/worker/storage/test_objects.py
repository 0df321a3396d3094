"""Tests of worker/storage/objects.py, on a real server of each kind: several writers of one step, remains, a server that is not there."""

import dataclasses
import time

import pytest
from pyarrow import fs

from tests.support.checkpoints import JOB, snapshot
from tests.support.object_store import SCHEMES, running_object_store
from worker.checkpoint import load, publish
from worker.contract.manifest import checkpoints_directory
from worker.errors import CheckpointWriteError, StaleFenceError
from worker.storage import opening
from worker.storage.opening import open_storage
from worker.storage.profiles import StorageConfigError
from worker.storage.storage import StorageUnreachableError


@pytest.fixture
def storage(object_store):
    """An empty place in the bucket."""
    return object_store.open(object_store.address())


def _keys(storage):
    found = storage.filesystem.get_file_info(
        fs.FileSelector(f"{storage.root}/{checkpoints_directory(JOB)}", recursive=True, allow_not_found=True)
    )
    return sorted(info.path.removeprefix(f"{storage.root}/{checkpoints_directory(JOB)}/") for info in found if info.is_file)


class _Between:
    """A file system that lets something happen just before a manifest is written."""

    def __init__(self, inner, happen):
        self._inner, self._happen = inner, happen

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def open_output_stream(self, key, **options):
        if "/manifest-" in key and self._happen is not None:
            happen, self._happen = self._happen, None
            happen()
        return self._inner.open_output_stream(key, **options)


def _interrupted(storage, happen):
    return dataclasses.replace(storage, filesystem=_Between(storage.filesystem, happen))


def test_a_later_attempt_that_publishes_meanwhile_wins(storage):
    """The late writer of the earlier attempt is told to end, and what it wrote is gone."""
    late = _interrupted(storage, lambda: publish(storage, snapshot(1, fence=2)))

    with pytest.raises(StaleFenceError, match="fence 1 is older than fence 2"):
        publish(late, snapshot(1, fence=1))
    [manifest] = storage.published(JOB).values()
    assert manifest.fence == 2
    assert load(storage, JOB, 1).manifest == manifest
    assert all("00000002-" in key for key in _keys(storage))


def test_two_writers_of_one_fence_agree_on_one_checkpoint(storage):
    """Both return the same manifest, every reader sees that one, and it is whole."""
    seen = []
    mine = publish(_interrupted(storage, lambda: seen.append(publish(storage, snapshot(1)))), snapshot(1))

    [manifest] = storage.published(JOB).values()
    assert mine == manifest
    assert load(storage, JOB, 1).manifest == manifest
    storage.sweep(JOB)
    assert {key.split("/")[1].removeprefix("manifest-").removesuffix(".json") for key in _keys(storage)} == {f"00000001-{manifest.writer}"}
    assert load(storage, JOB, 1).scalars == {"step": 1}


def test_the_remains_of_a_killed_writer_are_swept_away(storage):
    """Files without a manifest are no checkpoint; what is whole stays."""
    publish(storage, snapshot(1))
    whole = _keys(storage)
    for key in ("step-00000002/00000001-0123abcd/model.safetensors", "step-00000001/00000001-0123abcd/training.json"):
        with storage.filesystem.open_output_stream(f"{storage.root}/{checkpoints_directory(JOB)}/{key}") as stream:
            stream.write(b"half")
    assert storage.steps(JOB) == {1}

    storage.sweep(JOB)

    assert _keys(storage) == whole


def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(storage):
    """More than one part of an upload, more than one chunk of a read."""
    import torch

    big = torch.arange(5_000_000, dtype=torch.float32)
    publish(storage, dataclasses.replace(snapshot(1), model={"big": big}))

    assert torch.equal(load(storage, JOB, 1).model["big"], big)


def test_a_store_that_does_not_answer_is_said_so(object_store, tmp_path, monkeypatch):
    """A write fails as one that may be tried again; no secret is in what is said."""
    (tmp_path / "p.toml").write_text(object_store.profiles.read_text().replace(object_store.endpoint, "http://127.0.0.1:9"))
    monkeypatch.setenv("SYNCBN_STORAGE_PROFILES", str(tmp_path / "p.toml"))
    monkeypatch.setattr(opening, "GOOGLE_RETRIES_S", 1.0)
    storage = open_storage(f"{object_store.scheme}://bucket/prefix?profile=test")

    with pytest.raises(StorageUnreachableError, match="did not answer") as unreachable:
        storage.published(JOB)
    with pytest.raises(CheckpointWriteError, match="step 1 was not written") as failed:
        publish(storage, snapshot(1))
    assert "very-secret" not in f"{unreachable.value}{failed.value}{storage!r}{storage.address}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_store_that_dies_in_the_middle_is_an_error_that_names_it_in_bounded_time(scheme, tmp_path, monkeypatch):
    """What is half up is no checkpoint: the write fails as one that may be tried again, and so do those that only look."""
    monkeypatch.setattr(opening, "GOOGLE_RETRIES_S", 1.0)
    with running_object_store(scheme, tmp_path) as store:
        storage = store.at_hand(monkeypatch).open(store.address())
        publish(storage, snapshot(1))
        began = time.monotonic()
        with pytest.raises(CheckpointWriteError, match=rf"step 2 was not written .*{scheme}://.* did not answer") as failed:
            publish(_interrupted(storage, store.die), snapshot(2))
        with pytest.raises(StorageUnreachableError, match=f"{scheme}://.* did not answer"):
            storage.published(JOB)

    assert time.monotonic() - began < 60.0
    assert "very-secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("address", "profiles", "expected"),
    [
        ("s3://b?profile=team", None, "SYNCBN_STORAGE_PROFILES is not set here"),
        ("s3://b?profile=team", "[other]\n", "'team' is not in .*; expected one of other"),
        ("s3://b?profile=team", "[team", "'team' in .* cannot be used"),
        ("s3://b?profile=team", "[team]\naccess_key = 'very-secret'\n", "access_key: Extra inputs are not permitted"),
        ("s3://b?profile=team", "[team]\nsecret_key_env = 'NOT_SET'\n", "takes NOT_SET from the environment"),
        ("s3://key:very-secret@b/x", "", "storage s3://b/x is not supported"),
        ("s3:///x", "", "is not supported"),
        (
            "gs://b?profile=team",
            "[team]\nregion = 'eu'\nsecret_key_env = 'X'\n",
            "'team' has region, secret_key_env; gs:// takes anonymous, data, endpoint only",
        ),
        (
            "gs://b?profile=team",
            "[team]\nendpoint = 'localhost:80'\n",
            "'team' has the endpoint localhost:80; expected one with http:// or https://",
        ),
        ("ftp://b/x", "", "storage ftp://b/x is not supported"),
        ("file://elsewhere/x", "", "is not supported"),
        ("s3://b/x?secret=very-secret", "", "storage s3://b/x is not supported"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_in_words(address, profiles, expected, tmp_path, monkeypatch):
    """And never by quoting a secret that somebody put where none belongs."""
    path = tmp_path / "p.toml"
    if profiles is not None:
        path.write_text(profiles)
    monkeypatch.setenv("SYNCBN_STORAGE_PROFILES", "" if profiles is None else str(path))

    with pytest.raises(StorageConfigError, match=expected) as refused:
        open_storage(address)
    assert "very-secret" not in str(refused.value)
