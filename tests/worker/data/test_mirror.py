"""Tests of worker/data/mirror.py, against a real server of each kind on the loopback."""

import io
import json
import tarfile
import threading
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.images import pixels
from tests.support.object_store import BUCKET
from worker.contract import parse_spec
from worker.data import mirror
from worker.data.mirror import mirrored
from worker.data.registry import build_data
from worker.errors import DataError
from worker.storage.opening import open_filesystem
from worker.storage.profiles import find_profile

NUM_SAMPLES = 12


def _png(number):
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def _arrays(folder):
    for part in range(2):
        numbers = range(part * 6, part * 6 + 6)
        np.savez(folder / f"part-{part}.npz", x=np.stack([pixels(n).transpose(2, 0, 1) for n in numbers]), y=[n % 3 for n in numbers])
    return "part-*.npz"


def _imagefolder(folder):
    for number in range(NUM_SAMPLES):
        place = folder / f"class-{number % 3}" / "deep"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(_png(number))
    return ""


def _parquet(folder):
    table = pa.table({"image": [_png(number) for number in range(NUM_SAMPLES)], "label": [number % 3 for number in range(NUM_SAMPLES)]})
    pq.write_table(table, folder / "rows.parquet")
    return "rows.parquet"


def _webdataset(folder):
    with tarfile.open(folder / "0.tar", "w") as shard:
        for number in range(NUM_SAMPLES):
            for name, content in ((f"{number:02}.cls", str(number % 3).encode()), (f"{number:02}.png", _png(number))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    return ""


class Bucket:
    """A place of its own in the bucket, by a profile that lets jobs read it; copies go into a directory of the test's."""

    def __init__(self, store, folder, monkeypatch):
        self.place = f"{BUCKET}/{uuid.uuid4().hex}/photos"
        self.scheme = store.scheme
        self.uri = f"{self.scheme}://{self.place}"
        self.copies = folder / "copies"
        self.fetched = []
        """The objects that were copied, one entry for each time."""
        fetch = mirror._fetch
        monkeypatch.setattr(mirror, "_fetch", lambda store, info, file: (self.fetched.append(info.base_name), fetch(store, info, file)))
        profiles = folder / "profiles.toml"
        profiles.write_text(store.profiles.read_text() + f'data = ["{self.uri}"]\n[other]\n')
        monkeypatch.setenv("SYNCBN_STORAGE_PROFILES", str(profiles))
        monkeypatch.setenv("SYNCBN_DATA_CACHE", str(self.copies))
        self.filesystem = open_filesystem(self.scheme, find_profile("test"), "test")

    def put(self, name, content):
        """Store an object."""
        with self.filesystem.open_output_stream(f"{self.place}/{name}") as sink:
            sink.write(content)

    def take(self, folder):
        """Store all files of a directory."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(str(file.relative_to(folder)), file.read_bytes())


@pytest.fixture
def bucket(object_store, tmp_path, monkeypatch):
    """A place in the bucket of the server."""
    return Bucket(object_store, tmp_path, monkeypatch)


def _splits(name, path, **more):
    spec = {"name": "t", "model": {"name": "resnet18"}, "data": {"name": name, "path": path, **more}}
    return build_data(parse_spec(spec).data, 0)


@pytest.mark.parametrize(
    ("name", "write"), [("arrays", _arrays), ("imagefolder", _imagefolder), ("parquet", _parquet), ("webdataset", _webdataset)]
)
def test_every_format_is_read_from_a_bucket_as_from_a_disk(bucket, tmp_path, monkeypatch, name, write):
    """The same samples in the same split; copied once, whoever comes next; also where the node's data roots are set."""
    folder = tmp_path / "photos"
    folder.mkdir()
    inside = write(folder)
    bucket.take(folder)
    monkeypatch.setenv("SYNCBN_DATA_ROOTS", json.dumps([str(folder)]))
    local = _splits(name, f"{folder}/{inside}".rstrip("/"))
    remote, again = (_splits(name, f"{bucket.uri}/{inside}".rstrip("/"), profile="test") for _ in range(2))

    assert sorted(bucket.fetched) == sorted(file.name for file in folder.rglob("*") if file.is_file())
    for ours, theirs in ((remote.train, local.train), (remote.test, local.test), (again.train, local.train)):
        everything = np.arange(theirs.num_samples)
        for mine, yours in zip(ours.batch(everything, 0), theirs.batch(everything, 0), strict=True):
            assert np.array_equal(mine, yours)


def test_a_set_that_has_changed_is_another_copy(bucket):
    """What a job reads does not change under it: the earlier copy stays as it is."""
    bucket.put("a.npz", b"first")
    first = mirrored(bucket.uri, "test", is_deep=False)
    bucket.put("a.npz", b"second one")
    bucket.put("b/c.npz", b"deeper")
    second = mirrored(bucket.uri, "test", is_deep=False)

    assert [(mirror.Path(place) / "a.npz").read_bytes() for place in (first, second)] == [b"first", b"second one"]
    assert [file.name for file in mirror.Path(second).iterdir()] == ["a.npz"], "what lies deeper does not belong to it"


def test_ranks_of_one_node_copy_once(bucket):
    """All ask at the same time; one copies, the others wait for it, and find the same."""
    for number in range(5):
        bucket.put(f"{number}.npz", b"x" * 1000)
    found = []
    ranks = [threading.Thread(target=lambda: found.append(mirrored(bucket.uri, "test", is_deep=False))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)

    assert len(found) == 4
    assert len(set(found)) == 1
    assert sorted(bucket.fetched) == [f"{number}.npz" for number in range(5)]


def test_a_copy_is_there_when_all_of_it_is(bucket, monkeypatch):
    """A rank that is killed while it copies leaves nothing that another would take for the set."""
    bucket.put("a.npz", b"whole")
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_fetch", lambda _filesystem, _info, file: file.parent.mkdir(parents=True) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mirrored(bucket.uri, "test", is_deep=False)

    assert (mirror.Path(mirrored(bucket.uri, "test", is_deep=False)) / "a.npz").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("path", "profile", "message"),
    [
        (
            "SCHEME://checkpoints/jobs",
            "test",
            r"//checkpoints/jobs may not be read; expected one below .*://.*; move it or extend `data` of the",
        ),
        ("URIs", "test", r"may not be read; expected one below .*://.*/photos;"),
        ("URI", "other", r"may not be read; expected one below none; .* `data` of the storage profile 'other'"),
        ("URI", "", r"may not be read; expected one below /data or s3://lake; move it or extend SYNCBN_DATA_ROOTS"),
        ("URI", "unknown", r"cannot be read on this node: storage profile 'unknown' is not in .*; expected one of test, other"),
        ("URI/missing", "test", r"photos/missing has no object; expected some; check the bucket and the prefix"),
    ],
)
def test_what_may_not_be_read_or_is_not_there_is_said_so(bucket, monkeypatch, path, profile, message):
    """A profile by which checkpoints are kept opens nothing to jobs, unless the operator says what."""
    monkeypatch.setenv("SYNCBN_DATA_ROOTS", json.dumps(["/data", "s3://lake"]))
    with pytest.raises(DataError, match=message):
        mirrored(path.replace("URI", bucket.uri).replace("SCHEME", bucket.scheme), profile, is_deep=False)


def test_a_disk_without_room_and_a_copy_by_its_path_are_refused(bucket, monkeypatch):
    """Before the first byte; and nobody reads what another job has copied but by its URI."""
    bucket.put("a.npz", b"12345")
    monkeypatch.setattr(mirror.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 4}))
    with pytest.raises(DataError, match=r"has 5 bytes, and .*copies has room for 4; .*SYNCBN_DATA_CACHE"):
        mirrored(bucket.uri, "test", is_deep=False)
    with pytest.raises(DataError, match="lies among this node's copies; expected the URI"):
        mirrored(str(bucket.copies / "0" / "photos"), "", is_deep=False)
