"""Tests of worker/data/digits.py."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from worker.contract.catalogue import DigitsArgs
from worker.data.digits import MEAN, STD, build


def _batch(split, indices, epoch):
    return tuple(torch.from_numpy(array) for array in split.batch(indices, epoch))


def _all(split, epoch=0):
    return _batch(split, np.arange(split.num_samples), epoch)


def test_they_are_the_digits_of_scikit_learn():
    """Both splits together are load_digits(), scaled to [0, 1] and normalized."""
    splits = build(DigitsArgs(), 0)
    expected = load_digits()
    images, labels = (torch.cat(pair) for pair in zip(_all(splits.train), _all(splits.test), strict=True))
    found = sorted(
        (int(label), *image.flatten().mul(STD).add(MEAN).mul(16).round().int().tolist())
        for image, label in zip(images, labels, strict=True)
    )

    assert found == sorted((int(label), *map(int, image.flatten())) for image, label in zip(expected.images, expected.target, strict=True))
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1e-9, 1 - 1e-9])
def test_the_split_is_stratified_and_the_same_for_every_seed(fraction):
    """Every class gives its share to the test split, at least one sample to either side."""
    splits = [build(DigitsArgs(test_fraction=fraction), seed) for seed in (0, 1)]
    totals = torch.bincount(torch.cat([_all(splits[0].train)[1], _all(splits[0].test)[1]]))
    held_out = torch.bincount(_all(splits[0].test)[1], minlength=10)

    for total, count in zip(totals.tolist(), held_out.tolist(), strict=True):
        assert count == min(max(1, round(fraction * total)), total - 1)
    assert torch.equal(_all(splits[0].test)[0], _all(splits[1].test)[0])


def test_the_usual_split():
    """The figures of the demo."""
    splits = build(DigitsArgs(), 0)

    assert (splits.train.num_samples, splits.test.num_samples) == (1438, 359)
    assert (splits.train.num_classes, splits.train.image_shape) == (10, (1, 8, 8))


def test_shifts_depend_on_the_sample_and_the_epoch_alone():
    """A sample is shifted alike in any batch on any rank, and otherwise in another epoch; test samples never are."""
    splits = build(DigitsArgs(shift=2), 3)
    whole, _ = _batch(splits.train, np.arange(50), 4)
    part, _ = _batch(splits.train, np.array([49, 7]), 4)

    assert torch.equal(part, whole[[49, 7]])
    assert not torch.equal(_batch(splits.train, np.arange(50), 5)[0], whole)
    assert torch.equal(_all(splits.test, 0)[0], _all(splits.test, 1)[0])


def test_a_shift_moves_the_image_and_fills_with_background():
    """Every image is a window of the padded original, and all 25 shifts happen."""
    plain, shifted = build(DigitsArgs(), 0).train, build(DigitsArgs(shift=2), 0).train
    original, moved = _all(plain)[0], _all(shifted)[0]
    padded = torch.nn.functional.pad(original, (2,) * 4, value=-MEAN / STD)
    windows = torch.stack([padded[:, :, row : row + 8, column : column + 8] for row in range(5) for column in range(5)])
    matches = (windows == moved).flatten(2).all(2)

    assert matches.any(0).all()
    assert matches.any(1).all()


def test_an_empty_batch_has_the_shape():
    """A rank with an empty share asks for no samples."""
    x, y = _batch(build(DigitsArgs(shift=1), 0).train, np.empty(0, np.int64), 0)

    assert (x.shape, y.shape, y.dtype) == ((0, 1, 8, 8), (0,), torch.int64)
