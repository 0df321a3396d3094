"""Tests of worker/data/arrays.py and array_files.py."""

import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from worker.contract.catalogue import ArraysArgs
from worker.data.array_files import open_arrays
from worker.data.arrays import build
from worker.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), dtype=np.uint8)
Y = np.arange(7) % 3


def _write(path, **arrays):
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    elif path.stem == "small":
        np.savez_compressed(path, **arrays)
    else:
        np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("name", ["plain.npz", "small.npz", "a.safetensors"])
def test_samples_come_out_as_they_were_saved(tmp_path, name):
    """Whatever the kind of file, and in another process too."""
    records = pickle.loads(pickle.dumps(build(_write(tmp_path / name, x=X, y=Y), ArraysArgs())))

    assert (records.num_samples, records.num_classes, records.labels.tolist()) == (7, 3, Y.tolist())
    for index in range(7):
        image, label = records.read(index)
        assert np.array_equal(image, X[index])
        assert label == Y[index]
    assert records.describe(6) == f"{tmp_path / name}[6]"


@pytest.mark.parametrize("name", ["plain.npz", "a.safetensors"])
def test_samples_stay_on_disk_where_the_file_allows_it(tmp_path, name):
    """Arrays larger than the memory can be trained on; compressed ones are unpacked."""
    _write(tmp_path / name, x=np.asfortranarray(X) if name == "plain.npz" else X, y=Y)
    _write(tmp_path / "small.npz", x=X)

    mapped = open_arrays(tmp_path / name)["x"]
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, X)
    assert not isinstance(open_arrays(tmp_path / "small.npz")["x"], np.memmap)


def test_several_files_are_one_after_the_other(tmp_path):
    """A directory or a pattern, in the order of names, of both kinds."""
    _write(tmp_path / "1.npz", x=X[:2], y=Y[:2])
    _write(tmp_path / "2.safetensors", x=X[2:], y=Y[2:])
    for path in (tmp_path, tmp_path / "[12].*"):
        records = build(str(path), ArraysArgs())
        assert [int(records.read(index)[1]) for index in range(7)] == Y.tolist()
        assert np.array_equal(records.read(2)[0], X[2])
    assert records.describe(2) == f"{tmp_path / '2.safetensors'}[0]"


def test_channels_may_come_last_or_not_at_all(tmp_path):
    """Images are handed on with their channels first."""
    last = build(_write(tmp_path / "l.npz", x=np.moveaxis(X, 1, -1), y=Y), ArraysArgs(channels="last"))
    none = build(_write(tmp_path / "n.npz", x=X[:, 0], y=Y), ArraysArgs(channels="none"))

    assert np.array_equal(last.read(3)[0], X[3])
    assert np.array_equal(none.read(3)[0], X[3, :1])


def test_volumes_with_masks(tmp_path):
    """Where y has the shape of the volumes, it holds a class per voxel; their number cannot be guessed."""
    x, y = np.zeros((2, 1, 4, 5, 6), np.float32), np.full((2, 4, 5, 6), 2, np.uint8)
    path = _write(tmp_path / "volumes.npz", x=x, y=y)
    records = build(path, ArraysArgs(num_classes=3))

    assert records.labels is None
    assert records.read(1)[1].shape == (4, 5, 6)
    with pytest.raises(DataError, match=r"holds masks; expected data\.args\.num_classes"):
        build(path, ArraysArgs())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has no array y; expected x and y among x; name them in"),
        ({"x": X, "y": Y[:5]}, r"y in .* is int64 \(5,\) beside x of \(7, 3, 4, 5\); expected whole numbers.*\(7,\) or masks \(7, 4, 5\)"),
        ({"x": X, "y": Y.astype(float)}, r"y in .* is float64"),
        ({"x": X.astype(np.int64), "y": Y}, r"x in .* is int64 \(7, 3, 4, 5\); expected \(N, C, \*spatial\) of uint8"),
        ({"x": X, "y": Y - 1}, "go from -1 to 1; expected 0 to 1; number the classes"),
        ({"x": X, "y": Y * 0}, "go from 0 to 0; expected 0 to 1"),
        ({"x": X[:0], "y": Y[:0]}, "at least one"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(tmp_path, arrays, message):
    """Before training, with file, value and what was expected."""
    path = _write(tmp_path / "bad.npz", **arrays)

    with pytest.raises(DataError, match=message):
        build(path, ArraysArgs())


def test_files_must_be_alike(tmp_path):
    """One of another size is named."""
    _write(tmp_path / "1.npz", x=X, y=Y)
    _write(tmp_path / "2.npz", x=X[:, :1], y=Y)

    with pytest.raises(DataError, match=r"x in .*2\.npz is uint8 \(1, 4, 5\); expected uint8 \(3, 4, 5\) as in .*1\.npz"):
        build(str(tmp_path), ArraysArgs())


def test_python_objects_are_never_unpickled(tmp_path):
    """A file that would run code when loaded is refused unread."""
    np.savez(tmp_path / "evil.npz", x=np.array([object()], dtype=object), y=Y)

    with pytest.raises(ValueError, match=r"x\.npy in .*evil\.npz holds Python objects"):
        open_arrays(tmp_path / "evil.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_a_file_that_is_none_is_named(tmp_path, name):
    """Whatever its ending says."""
    (tmp_path / name).write_bytes(b"\xff" * 64)

    with pytest.raises(ValueError, match=f"{name} is no .{name[2:]} file"):
        open_arrays(tmp_path / name)
