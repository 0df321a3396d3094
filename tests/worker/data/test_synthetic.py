"""Tests of worker/data/synthetic.py and noise.py."""

import numpy as np
import pytest

from worker.contract.catalogue import SyntheticArgs
from worker.data.noise import bits, normals
from worker.data.synthetic import build


def test_a_sample_is_a_function_of_seed_and_index():
    """The size of the set, the batch and the epoch do not matter."""
    small, large = (build(SyntheticArgs(num_samples=size), 5).train for size in (100, 2**40))
    x, y = small.batch(np.array([3, 99]), 0)
    again, labels = large.batch(np.array([99, 2**40 - 1, 3]), 7)

    assert np.array_equal(x, again[[2, 0]])
    assert labels.tolist() == [9, (2**40 - 1) % 10, 3]
    assert x.dtype == np.float32
    assert y.dtype == np.int64


def test_seeds_splits_and_samples_differ():
    """Training and test samples of the same index have the same class and other noise."""
    one, other = build(SyntheticArgs(), 0), build(SyntheticArgs(), 1)
    indices = np.array([0])

    images = [split.batch(indices, 0)[0] for split in (one.train, one.test, other.train)]
    assert not any(np.array_equal(a, b) for number, a in enumerate(images) for b in images[number + 1 :])


def test_it_can_be_learned():
    """The nearest class mean of the training samples finds the class of a test sample."""
    splits = build(SyntheticArgs(num_samples=200, num_test_samples=50, image_size=8), 0)
    x, y = splits.train.batch(np.arange(200), 0)
    means = np.stack([x[y == label].mean(0) for label in range(10)]).reshape(10, -1)
    x_test, y_test = splits.test.batch(np.arange(50), 0)

    assert (np.linalg.norm(x_test.reshape(50, 1, -1) - means, axis=2).argmin(1) == y_test).all()


def test_normals_are_normal():
    """Mean 0, variance 1, and the tails of the bell."""
    drawn = normals((1, 2), 200_001)

    assert drawn.dtype == np.float32
    assert len(drawn) == 200_001
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.var() - 1) < 0.02
    assert abs((np.abs(drawn) > 2).mean() - 0.0455) < 0.003


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_bits_differ_by_seed_epoch_and_lane(other):
    """No stream is another's copy."""
    indices = np.arange(100)
    seed, epoch, lane = other

    assert not (bits(0, 0, indices, 0) == bits(seed, epoch, indices, lane)).any()
    assert len(set(bits(0, 0, indices, 0).tolist())) == 100


@pytest.mark.parametrize("dimensions", [2, 3])
def test_masks_are_a_function_of_seed_and_index(dimensions):
    """One ball of each class on a background, the same in any batch and epoch, another in every sample, split and seed."""
    args = SyntheticArgs(task="segmentation", num_classes=3, dimensions=dimensions, image_size=16, channels=2)
    splits, other = build(args, 5), build(args, 6)
    x, y = splits.train.batch(np.array([3, 99]), 0)
    again, masks = splits.train.batch(np.array([99, 7, 3]), 4)
    seen = [y[0], y[1], splits.test.batch(np.array([3]), 0)[1][0], other.train.batch(np.array([3]), 0)[1][0]]

    assert x.shape == (2, 2, *(16,) * dimensions)
    assert y.shape == (2, *(16,) * dimensions)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert np.array_equal(x, again[[2, 0]])
    assert np.array_equal(y, masks[[2, 0]])
    assert not any(np.array_equal(a, b) for number, a in enumerate(seen) for b in seen[number + 1 :])
    assert all(set(np.unique(mask).tolist()) >= {0, 2} for mask in masks)


def test_masks_can_be_learned():
    """The nearest of the classes' intensities finds most positions."""
    x, y = build(SyntheticArgs(task="segmentation", num_classes=3), 0).train.batch(np.arange(20), 0)
    nearest = np.abs(x.mean(1, keepdims=True) - 2 * np.arange(3.0).reshape(1, 3, 1, 1)).argmin(1)

    assert (nearest == y).mean() > 0.9
