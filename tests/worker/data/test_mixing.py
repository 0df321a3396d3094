"""Tests of worker/data/mixing.py."""

import numpy as np
import pytest

from worker.contract.transforms import Mixup
from worker.data.mixing import Mixing
from worker.errors import DataError


def test_partners_are_the_batch_in_another_order():
    """Every sample is a partner once; another step has another order."""
    mixing, batch = Mixing(Mixup(name="mixup"), 0, 3), np.arange(100, 164)

    assert sorted(mixing.partners(batch, 5)) == batch.tolist()
    assert not np.array_equal(mixing.partners(batch, 5), mixing.partners(batch, 6))


@pytest.mark.parametrize(("alpha", "mean"), [(0.01, 0.9932), (0.2, 0.8988), (1.0, 0.75), (4.0, 0.6367)])
def test_the_share_is_beta_distributed(alpha, mean):
    """The mean of max(s, 1 - s) for Beta(alpha, alpha), which is 1 - I(1/2; alpha + 1, alpha); small alphas do not underflow."""
    mixing = Mixing(Mixup(name="mixup", alpha=alpha), 0, 3)
    shares = np.array([mixing.share(step) for step in range(1000)])

    assert ((shares >= 0.5) & (shares <= 1)).all()
    assert abs(shares.mean() - mean) < 0.012


def test_images_and_labels_are_mixed_alike():
    """A quarter of a cat has a quarter of a cat's label."""
    x, y = Mixing(Mixup(name="mixup"), 0, 3).mix((np.ones((1, 2)), np.array([2])), (np.zeros((1, 2)), np.array([0])), 0.75)

    assert x.tolist() == [[0.75, 0.75]]
    assert y.tolist() == [[0.25, 0, 0.75]]


def test_masks_cannot_be_mixed():
    """The message says what to remove."""
    pair = np.ones((1, 3, 2, 2)), np.zeros((1, 2, 2), int)

    with pytest.raises(DataError, match=r"mixup was given masks \(2, 2\); expected one label per sample; remove mixup"):
        Mixing(Mixup(name="mixup"), 0, 3).mix(pair, pair, 0.5)
