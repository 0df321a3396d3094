"""Tests of worker/tasks/classification.py."""

import math

import pytest
import torch

from worker.contract.catalogue import ClassificationArgs
from worker.errors import TaskError
from worker.tasks.classification import Classification

PLAIN = Classification(ClassificationArgs(), 4)


def test_one_loss_per_sample_and_counts():
    """The losses are the cross-entropies, not their mean."""
    logits, labels = torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0, 1, 0])

    assert PLAIN.losses(logits, labels).tolist() == pytest.approx([math.log(4)] * 3)
    assert PLAIN.metrics(PLAIN.sums(logits, labels).tolist(), 3) == {"accuracy": 2 / 3}


def test_an_empty_batch_is_zero_and_has_a_gradient():
    """A rank with an empty share goes through backward like the others."""
    weight = torch.ones(2, 4, requires_grad=True)
    logits, labels = torch.empty(0, 2) @ weight, torch.empty(0, dtype=torch.int64)
    torch.autograd.backward(PLAIN.losses(logits, labels).sum())

    assert PLAIN.sums(logits, labels).tolist() == [0]
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    """A thousand losses do not fit into ten bits."""
    losses = PLAIN.losses(torch.zeros(1000, 4, dtype=dtype), torch.zeros(1000, dtype=torch.int64))

    assert losses.dtype is torch.float32
    assert losses.sum().item() == pytest.approx(1000 * math.log(4), rel=1e-5)


def test_label_smoothing_spreads_a_share_of_the_target():
    """(1 - s) onehot + s / C, written out."""
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    targets = 0.8 * torch.nn.functional.one_hot(labels, 4) + 0.2 / 4

    losses = Classification(ClassificationArgs(label_smoothing=0.2), 4).losses(logits, labels)
    torch.testing.assert_close(losses, -(targets * logits.log_softmax(1)).sum(1))


def test_top_5_of_more_than_five_classes():
    """The sixth is not among the first five."""
    logits = torch.arange(7.0).expand(2, 7)
    task = Classification(ClassificationArgs(), 7)

    assert task.metrics(task.sums(logits, torch.tensor([6, 1])).tolist(), 2) == {"accuracy": 0.5, "top5": 0.5}
    assert task.metrics(task.sums(logits, torch.tensor([2, 2])).tolist(), 2) == {"accuracy": 0.0, "top5": 1.0}


def test_mixed_labels_are_shares_of_classes():
    """What mixing samples makes of labels is learned as it is, and counted by its larger part."""
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    shares = torch.tensor([[0.75, 0.25, 0.0, 0.0]])

    expected = -(shares * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(PLAIN.losses(logits, shares), expected)
    assert PLAIN.sums(logits, shares).tolist() == [1]


def test_masks_are_refused_by_name():
    """Data for segmentation is told apart from labels, with the shape found."""
    with pytest.raises(TaskError, match=r"labels have shape \(2, 8, 8\); expected one class per sample"):
        PLAIN.losses(torch.zeros(2, 4), torch.zeros(2, 8, 8, dtype=torch.int64))
