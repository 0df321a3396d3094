"""Tests of worker/data/imagefolder.py and records.py."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.support.images import pixels, write_classes
from worker.contract.catalogue import ImageFolderArgs
from worker.data.imagefolder import build
from worker.errors import DataError

MASKS = ImageFolderArgs(targets="masks", num_classes=4)


def test_classes_are_directories_in_the_order_of_their_names(tmp_path):
    """The order in which they were made does not matter; files below subdirectories count, others and hidden ones do not."""
    write_classes(tmp_path, {"zebra": 2, "ant": 3})
    (tmp_path / "ant" / "deep").mkdir()
    Image.fromarray(pixels(9)).save(tmp_path / "ant" / "deep" / "x.JPG", quality=95)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / "._000.png").write_text("no image")
    (tmp_path / ".cache").mkdir()
    records = build(str(tmp_path), ImageFolderArgs())

    assert (records.num_samples, records.num_classes, records.labels.tolist()) == (6, 2, [0, 0, 0, 0, 1, 1])
    image, label = records.read(4)
    assert np.array_equal(image, pixels(0).transpose(2, 0, 1))
    assert label == 1
    assert records.describe(4) == str(tmp_path / "zebra" / "000.png")
    assert records.describe(3) == str(tmp_path / "ant" / "deep" / "x.JPG")


def test_names_are_any_bytes_and_cross_to_another_process(tmp_path):
    """Umlauts, spaces and pickling change nothing."""
    write_classes(tmp_path, {"a Käfer": 1, "b": 1})
    records = pickle.loads(pickle.dumps(build(str(tmp_path), ImageFolderArgs())))

    assert records.read(1)[0].shape == (3, 12, 14)
    assert records.describe(0) == str(tmp_path / "a Käfer" / "000.png")


@pytest.mark.parametrize("counts", [{}, {"only": 2}, {"full": 2, "empty": 0}])
def test_a_directory_without_two_full_classes_is_refused(tmp_path, counts):
    """The message names what is empty."""
    write_classes(tmp_path, counts)

    with pytest.raises(DataError, match=rf"has {len(counts)} directories, and no image in {'empty' if 'empty' in counts else 'none'}"):
        build(str(tmp_path), ImageFolderArgs())


def test_a_path_that_is_not_there_is_named(tmp_path):
    """It may be there on another node."""
    with pytest.raises(DataError, match=r"/gone is no directory; expected one on every node"):
        build(str(tmp_path / "gone"), ImageFolderArgs())


def _write_masks(root, values):
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number, value in enumerate(values):
        Image.fromarray(pixels(number)).save(root / "images" / f"{number}.bmp")
        Image.fromarray(np.full((12, 14), value, np.uint8)).save(root / "masks" / f"{number}.png")


def test_images_and_masks_are_paired_by_name(tmp_path):
    """Endings may differ."""
    _write_masks(tmp_path, [0, 3, 255])
    records = build(str(tmp_path), MASKS)

    assert (records.num_samples, records.num_classes, records.labels) == (3, 4, None)
    image, mask = records.read(2)
    assert np.array_equal(image, pixels(2).transpose(2, 0, 1))
    assert (mask == 255).all()
    assert mask.shape == (12, 14)


def test_a_mask_with_a_value_that_is_no_class_is_refused(tmp_path):
    """255 is ignored; 4 of 4 classes is a mistake."""
    _write_masks(tmp_path, [4])

    with pytest.raises(ValueError, match="the mask has the value 4; expected 0 to 3, or 255 to ignore"):
        build(str(tmp_path), MASKS).read(0)


def test_an_image_without_a_mask_is_named(tmp_path):
    """Before training, not in the middle of it."""
    _write_masks(tmp_path, [0, 1])
    (tmp_path / "masks" / "1.png").unlink()

    with pytest.raises(DataError, match="without their other half: 1; expected"):
        build(str(tmp_path), MASKS)


def test_data_outside_of_the_allowed_roots_is_refused(tmp_path, monkeypatch):
    """Neither by its path nor through a link; inside, all is well."""
    write_classes(tmp_path / "inside", {"a": 1, "b": 1})
    write_classes(tmp_path / "outside", {"a": 1, "b": 1})
    monkeypatch.setenv("SYNCBN_DATA_ROOTS", json.dumps(["/nowhere", str(tmp_path / "inside")]))

    assert build(str(tmp_path / "inside"), ImageFolderArgs()).num_samples == 2
    with pytest.raises(DataError, match=r"/outside may not be read; expected a path under /nowhere or .*/inside; "):
        build(str(tmp_path / "outside"), ImageFolderArgs())
    (tmp_path / "inside" / "a" / "link.png").symlink_to(tmp_path / "outside" / "a" / "000.png")
    with pytest.raises(DataError, match=r"link\.png may not be read"):
        build(str(tmp_path / "inside"), ImageFolderArgs())
