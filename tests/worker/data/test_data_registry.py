"""Tests of worker/data/registry.py, division.py and generated.py."""

import numpy as np
import pytest

from tests.support.images import write_classes
from worker.contract import DATASETS
from worker.contract.data import DataSpec
from worker.data.division import held_out
from worker.data.registry import BUILDERS, READERS, build_data
from worker.data.split import class_names_of
from worker.errors import DataError

CROP = {"name": "random_crop", "size": 10}


def test_every_name_of_the_catalogue_can_be_built():
    """What the controller accepts, a rank can build; nothing else is there."""
    assert BUILDERS.keys() == {name for name, entry in DATASETS.items() if not entry.is_stored}
    assert READERS.keys() == {name for name, entry in DATASETS.items() if entry.is_stored}
    for name in BUILDERS:
        assert build_data(DataSpec(name=name), 0).train.num_samples > 0


def test_data_that_cannot_be_read_is_the_datas_fault(monkeypatch):
    """The message says which file and line raised."""

    def unreadable(args, seed):
        raise OSError("No such file")

    monkeypatch.setitem(BUILDERS, "digits", unreadable)
    with pytest.raises(DataError, match="in unreadable: OSError: No such file"):
        build_data(DataSpec(name="digits"), 0)


def test_a_share_of_every_class_is_held_out():
    """A function of the seed; a class of one sample is trained on; unequal classes give their shares."""
    labels = np.array([0] * 10 + [1] * 50 + [2])
    marks = held_out(labels, 0.2, 7)

    assert np.bincount(labels[marks], minlength=3).tolist() == [2, 10, 0]
    assert np.array_equal(marks, held_out(labels, 0.2, 7))
    assert not np.array_equal(marks, held_out(labels, 0.2, 8))


def test_training_and_validation_are_disjoint_and_complete(tmp_path):
    """By the split's seed and not by the job's."""
    write_classes(tmp_path, {"a": 10, "b": 20})
    spec = DataSpec(name="imagefolder", path=str(tmp_path), split={"validation": 0.2})
    splits, others = build_data(spec, 0), build_data(spec, 1)

    assert sorted([*splits.train.numbers, *splits.test.numbers]) == list(range(30))
    assert (splits.train.num_samples, splits.test.num_samples) == (24, 6)
    assert np.array_equal(splits.test.numbers, others.test.numbers)


def test_validation_may_have_a_path_of_its_own(tmp_path):
    """Then all of the first path is trained on; classes that were not trained on are refused."""
    write_classes(tmp_path / "train", {"a": 2, "b": 3})
    write_classes(tmp_path / "val", {"a": 1, "b": 1})
    write_classes(tmp_path / "more", {"a": 1, "b": 1, "c": 1})
    spec = {"name": "imagefolder", "path": str(tmp_path / "train")}
    splits = build_data(DataSpec(**spec, split={"validation": str(tmp_path / "val")}), 0)

    assert (splits.train.num_samples, splits.test.num_samples) == (5, 2)
    with pytest.raises(DataError, match="more has 3 classes; expected at most the 2 of"):
        build_data(DataSpec(**spec, split={"validation": str(tmp_path / "more")}), 0)


def test_validation_numbers_its_classes_as_training_does(tmp_path):
    """By the names of their directories, also where a class has no image to validate; a class that was not trained on is refused."""
    write_classes(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2})
    write_classes(tmp_path / "val", {"ant": 1, "cat": 1})
    write_classes(tmp_path / "strange", {"ant": 1, "dog": 1})
    spec = {"name": "imagefolder", "path": str(tmp_path / "train")}
    splits = build_data(DataSpec(**spec, split={"validation": str(tmp_path / "val")}), 0)

    assert splits.test.batch(np.arange(2), 0)[1].tolist() == [0, 2]
    assert (splits.test.num_classes, splits.test.class_names) == (3, ("ant", "bee", "cat"))
    with pytest.raises(DataError, match="strange has the classes dog; expected those of"):
        build_data(DataSpec(**spec, split={"validation": str(tmp_path / "strange")}), 0)


def test_a_data_set_that_names_its_classes_says_so(tmp_path, monkeypatch):
    """Directories and digits do, also behind transforms; numbers alone have no names, nor have too many classes."""
    write_classes(tmp_path, {"zebra": 2, "ant": 3})
    folders = build_data(DataSpec(name="imagefolder", path=str(tmp_path)), 0)
    digits = build_data(DataSpec(name="digits"), 0), build_data(DataSpec(name="digits", transforms=[CROP | {"size": 8}]), 0)

    assert class_names_of(folders.train) == class_names_of(folders.test) == ("ant", "zebra")
    assert [class_names_of(one.train) for one in digits] == [tuple("0123456789")] * 2
    assert class_names_of(build_data(DataSpec(name="synthetic"), 0).train) is None
    monkeypatch.setattr("worker.data.split.MAX_NAMES", 1)
    assert class_names_of(folders.train) is None


def test_validation_is_not_augmented(tmp_path):
    """Random crops become central, flips and the like do nothing; every epoch is alike."""
    write_classes(tmp_path, {"a": 3, "b": 3})
    random = [CROP, {"name": "flip"}, {"name": "color", "contrast": 0.5}, {"name": "cutout", "size": 3}, {"name": "mixup"}]
    split = build_data(DataSpec(name="imagefolder", path=str(tmp_path), transforms=random), 0).test
    x, _ = split.batch(np.arange(2), 0)

    for place in range(2):
        stored, _ = split.records.read(split.numbers[place])
        assert np.allclose(x[place], stored[:, 1:11, 2:12] / 255, atol=1e-6)
    assert np.array_equal(split.batch(np.arange(2), 3)[0], x)


def test_generated_data_takes_transforms_too():
    """Each sample by its own numbers, whatever batch it is in; a rank without samples gets the shape."""
    train = build_data(DataSpec(name="synthetic", transforms=[CROP, {"name": "flip"}]), 0).train
    x, y = train.batch(np.arange(8), 1)
    part, _ = train.batch(np.array([5]), 1)

    assert (train.image_shape, y.tolist()) == ((3, 10, 10), list(range(8)))
    assert np.array_equal(part[0], x[5])
    assert not np.array_equal(train.batch(np.arange(8), 2)[0], x)
    assert train.batch(np.empty(0, np.int64), 0)[0].shape == (0, 3, 10, 10)
