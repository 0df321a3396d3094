"""The update of running statistics."""

from __future__ import annotations

import pytest
import torch

from syncbn import running
from syncbn.moments import Moments


def batch(n: float) -> Moments:
    """A batch of n values with mean 2 and M2 12."""
    return Moments(*(torch.tensor(value, dtype=torch.float64) for value in (n, [2.0], [12.0])))


@pytest.mark.parametrize(("unbiased", "variance"), [(True, 4.0), (False, 3.0)])
@pytest.mark.parametrize("momentum", [0.25, torch.tensor(0.25, dtype=torch.float64)])
def test_buffers_move_towards_the_batch(unbiased, variance, momentum) -> None:
    """The new statistics are (1 - f) old + f batch, with n / (n - 1) where asked for."""
    mean, var = torch.zeros(1), torch.ones(1)
    running.update_(mean, var, batch(4), momentum, unbiased=unbiased)
    assert mean.item() == 0.5
    assert var.item() == 0.75 + 0.25 * variance


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_values_move_nothing(n) -> None:
    """There is no variance to enter: the buffers stay as they are, and no NaN gets in."""
    mean, var = torch.zeros(1), torch.ones(1)
    running.update_(mean, var, batch(n), 0.5, unbiased=True)
    assert (mean.item(), var.item()) == (0.0, 1.0)


def test_a_small_variance_is_not_lost_in_a_large_one() -> None:
    """With momentum 1 the batch's variance arrives with all its digits, though the old one is 10^12 times larger."""
    mean, var = torch.zeros(1), torch.ones(1)
    tiny = Moments(torch.tensor(2.0).double(), torch.zeros(1).double(), torch.tensor([2.5e-12]).double())
    running.update_(mean, var, tiny, 1.0, unbiased=True)
    assert var.item() == pytest.approx(2.5e-12, rel=1e-6)
