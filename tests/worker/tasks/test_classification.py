"""Tests of worker/tasks/classification.py."""

import math

import pytest
import torch

from worker.tasks.classification import measure


def test_sums_over_the_batch():
    """The loss is the sum of the cross-entropies, not their mean."""
    sums = measure(torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0, 1, 0]))

    assert sums.loss.item() == pytest.approx(3 * math.log(4))
    assert sums.num_correct.item() == 2


def test_an_empty_batch_is_zero_and_has_a_gradient():
    """A rank with an empty share goes through backward like the others."""
    weight = torch.ones(2, 4, requires_grad=True)
    sums = measure(torch.empty(0, 2) @ weight, torch.empty(0, dtype=torch.int64))
    torch.autograd.backward(sums.loss)

    assert (sums.loss.item(), sums.num_correct.item()) == (0, 0)
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    """A thousand losses do not fit into ten bits."""
    sums = measure(torch.zeros(1000, 3, dtype=dtype), torch.zeros(1000, dtype=torch.int64))

    assert sums.loss.dtype is torch.float32
    assert sums.loss.item() == pytest.approx(1000 * math.log(3), rel=1e-5)
