"""Tests of worker/data/webdataset.py."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.support.images import pixels
from worker.contract.catalogue import WebDatasetArgs
from worker.data.webdataset import build
from worker.errors import DataError


def _png(number):
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def _write(path, members, mode="w"):
    with tarfile.open(path, mode) as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return str(path)


def _sample(number):
    return [(f"train/{number:04}.cls", f"{number % 3}\n".encode()), (f"train/{number:04}.png", _png(number))]


def test_samples_of_all_shards_by_index(tmp_path):
    """In any order; files that belong to no image part are left alone."""
    _write(tmp_path / "0.tar", [*_sample(0), *_sample(1), ("train/0001.json", b"{}")])
    _write(tmp_path / "1.tar", [*_sample(2), *_sample(3), *_sample(4)])
    records = build(str(tmp_path / "*.tar"), WebDatasetArgs())

    assert (records.num_samples, records.num_classes) == (5, 3)
    for index in (4, 0, 2, 1):
        image, label = records.read(index)
        assert np.array_equal(image, pixels(index).transpose(2, 0, 1))
        assert label == index % 3
    assert records.describe(2).startswith(f"{tmp_path / '1.tar'} at byte ")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", _png(0))], "sample a in .* has png; expected one of jpg, jpeg, png, webp and cls"),
        ([("a.png", _png(0)), ("a.cls", b"cat")], "a.cls in .* holds 'cat'; expected the number of a class"),
        ([], "has 0 samples"),
    ],
)
def test_shards_that_cannot_be_trained_on_are_refused(tmp_path, members, message):
    """With sample, value, and what was expected."""
    path = _write(tmp_path / "0.tar", members)

    with pytest.raises(DataError, match=message):
        build(path, WebDatasetArgs())


def test_a_compressed_shard_is_refused(tmp_path):
    """There is no seeking in it."""
    path = _write(tmp_path / "0.tar", _sample(0), "w:gz")

    with pytest.raises(DataError, match="is no uncompressed tar file"):
        build(path, WebDatasetArgs())
