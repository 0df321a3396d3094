"""Tests of worker/data/stored.py and bad.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.images import truncate, write_classes
from worker.contract.data import DataSpec
from worker.data.bad import BadSample, BadSamples
from worker.data.registry import build_data
from worker.errors import BadDataError, DataError, PeerLostError


def _train(root, **options):
    return build_data(DataSpec(name="imagefolder", path=str(root), split={"validation": 0.1}, **options), 0).train


def test_a_bad_file_is_replaced_and_named(tmp_path):
    """By another sample with its own label: the same one in any batch, on any rank; in another epoch by another."""
    write_classes(tmp_path, {"a": 20, "b": 20})
    train = _train(tmp_path)
    clean = train.batch(np.arange(train.num_samples), 0)
    name = train.records.describe(train.numbers[7])
    truncate(Path(name))
    x, y = train.batch(np.arange(train.num_samples), 0)

    found = train.take_bad()
    assert [(sample.name, "OSError" in sample.reason or "SyntaxError" in sample.reason) for sample in found] == [(name, True)]
    substitute = next(place for place in range(len(y)) if place != 7 and np.array_equal(clean[0][place], x[7]))
    assert y[7] == clean[1][substitute]
    assert np.array_equal(np.delete(x, 7, 0), np.delete(clean[0], 7, 0))
    assert np.array_equal(train.batch(np.array([7]), 0)[0][0], x[7])
    assert len({train.batch(np.array([7]), epoch)[0].tobytes() for epoch in range(8)}) > 1


def test_where_nothing_can_be_read_there_is_an_end(tmp_path):
    """Not an endless search for a substitute."""
    write_classes(tmp_path, {"a": 3, "b": 3})
    for path in tmp_path.glob("*/*"):
        path.write_bytes(b"no image")

    with pytest.raises(BadDataError, match=r"\.png cannot be read \(UnidentifiedImageError: .*nor can 16 others"):
        _train(tmp_path).batch(np.arange(2), 0)


def test_images_of_different_sizes_are_refused_by_name(tmp_path):
    """Unless a transform makes them alike."""
    write_classes(tmp_path, {"a": 3, "b": 3})
    Image.new("RGB", (9, 30)).save(tmp_path / "b" / "002.png")
    resized = _train(tmp_path, transforms=[{"name": "resize", "size": [8, 8]}])

    assert resized.batch(np.arange(resized.num_samples), 0)[0].shape[1:] == (3, 8, 8)
    train = build_data(DataSpec(name="imagefolder", path=str(tmp_path), split={"validation": str(tmp_path)}), 0).train
    with pytest.raises(DataError, match=r"b/002\.png is \(3, 30, 9\) after the transforms.*expected \(3, 12, 14\).*add a resize"):
        train.batch(np.arange(train.num_samples), 0)


def _bad(count, start=0):
    return tuple(BadSample(f"/data/{number}.png", "OSError: truncated") for number in range(start, start + count))


def test_up_to_the_limit_bad_samples_are_warnings():
    """Each is named; the next pass begins to count anew."""
    said = []
    bad = BadSamples(2, lambda code, message: said.append((code, message)))
    for epoch in range(3):
        bad.settle(epoch, _bad(1), 1)
        bad.settle(epoch, (), 1)

    assert said == [("bad_sample", "/data/0.png cannot be read (OSError: truncated); another sample takes its place")] * 3


def test_past_the_limit_the_job_fails_and_names_files():
    """The ranks that met them name the first few; the others say only that it was not them."""
    one, other = (BadSamples(9, lambda code, message: None) for _ in range(2))
    for step in range(2):
        one.settle(0, _bad(4, 4 * step), 4)
        other.settle(0, (), 4)

    with pytest.raises(
        BadDataError, match=r"10 samples cannot be read, among them /data/0\.png, .*/data/4\.png \(OSError: .*at most 9 in one pass"
    ):
        one.settle(0, (), 2)
    with pytest.raises(PeerLostError):
        other.settle(0, (), 2)


def test_warnings_are_bounded():
    """A broken mount does not fill the store."""
    said = []
    bad = BadSamples(10_000, lambda code, message: said.append(message))
    for _ in range(5):
        bad.settle(0, _bad(90), 90)

    assert len(said) == 100
