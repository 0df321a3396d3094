"""Tests of worker/data/parquet.py."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.images import pixels
from worker.contract.catalogue import ParquetArgs
from worker.data.parquet import build
from worker.errors import DataError


def _png(number):
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def _write(path, numbers, **columns):
    images = [_png(number) for number in numbers]
    table = {"image": images, "label": [number % 3 for number in numbers]} | columns
    pq.write_table(pa.table(table), path, row_group_size=2)
    return str(path)


def test_rows_of_all_files_by_index(tmp_path):
    """In any order, over row groups and files, and in another process."""
    _write(tmp_path / "a.parquet", range(5))
    _write(tmp_path / "b.parquet", range(5, 8))
    records = pickle.loads(pickle.dumps(build(str(tmp_path), ParquetArgs(cache_mb=1))))

    assert (records.num_samples, records.num_classes) == (8, 3)
    for index in (7, 0, 4, 5, 1):
        image, label = records.read(index)
        assert np.array_equal(image, pixels(index).transpose(2, 0, 1))
        assert label == index % 3
    assert records.describe(6) == f"{tmp_path / 'b.parquet'}, row 1 of row group 0"


def test_images_as_hugging_face_stores_them(tmp_path):
    """A struct of bytes and path."""
    images = [{"bytes": _png(number), "path": None} for number in range(3)]
    records = build(_write(tmp_path / "a.parquet", range(3), image=images), ParquetArgs())

    assert np.array_equal(records.read(2)[0], pixels(2).transpose(2, 0, 1))


def test_lists_of_numbers(tmp_path):
    """Flat lists are given their shape."""
    values = np.arange(3 * 12, dtype=np.float32).reshape(3, 12)
    path = _write(tmp_path / "a.parquet", range(3), image=list(values))
    records = build(path, ParquetArgs(shape=(1, 3, 4)))

    assert np.array_equal(records.read(1)[0], values[1].reshape(1, 3, 4))


def test_only_so_many_row_groups_stay_in_memory(tmp_path):
    """The bound holds per process; the last one stays in any case."""
    big = [np.zeros(300_000, np.float32)] * 6
    records = build(_write(tmp_path / "a.parquet", range(6), image=big), ParquetArgs(shape=(3, 100, 1000), cache_mb=3))
    for index in (0, 2, 4, 1):
        records.read(index)

    assert list(records._cache) == [0]


@pytest.mark.parametrize(
    ("columns", "args", "message"),
    [
        ({}, {"label": "class"}, "has no column class; expected image and class among image, label"),
        ({"label": ["cat", "dog", "cat"]}, {}, "the labels in .* are string, 0 of them null; expected whole numbers"),
        ({"label": [0, None, 1]}, {}, "1 of them null"),
        ({"label": [0, -1, 1]}, {}, "with labels from -1"),
    ],
)
def test_columns_that_cannot_be_trained_on_are_refused(tmp_path, columns, args, message):
    """With file, value, and what was expected."""
    path = _write(tmp_path / "a.parquet", range(3), **columns)

    with pytest.raises(DataError, match=message):
        build(path, ParquetArgs(**args))
