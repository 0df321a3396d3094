"""sync_batch_norm alone: torch's batch_norm with one more argument or two."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import batch_norm

from syncbn import OptionError, ShapeError, sync_batch_norm


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_torchs_batch_norm(training) -> None:
    """Outputs and buffers are equal bit for bit."""
    x, weight, bias = torch.randn(4, 3, 5), torch.rand(3), torch.rand(3)
    ours, theirs = ((torch.zeros(3), torch.ones(3)) for _ in range(2))
    y = sync_batch_norm(x, *ours, weight, bias, training=training, momentum=0.3, eps=1e-3, process_group=None)
    assert torch.equal(y, batch_norm(x, *theirs, weight, bias, training, 0.3, 1e-3))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_empty_batch_alone_is_torchs_too() -> None:
    """Nothing in, nothing out, buffers untouched."""
    mean = torch.zeros(3)
    assert sync_batch_norm(torch.zeros(0, 3, 2), mean, torch.ones(3), training=True).shape == (0, 3, 2)
    assert not mean.any()


def test_biased_running_variance() -> None:
    """Without Bessel's correction the variance is divided by n."""
    x, var = torch.randn(5, 2), torch.ones(2)
    sync_batch_norm(x, torch.zeros(2), var, training=True, momentum=1.0, unbiased_running_var=False)
    torch.testing.assert_close(var, x.var(0, correction=0))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: sync_batch_norm(torch.ones(2, 3, dtype=torch.long), None, None, training=True),
            ShapeError,
            "dtype torch.int64 cannot be normalized",
        ),
        (
            lambda: sync_batch_norm(torch.ones(2, 3), torch.zeros(3), None, training=True),
            OptionError,
            "only one of running_mean and running_var",
        ),
        (lambda: sync_batch_norm(torch.ones(2, 3), None, None, torch.ones(4), training=True), ShapeError, "expected 4 in dimension 1"),
    ],
)
def test_wrong_arguments_are_refused(call, error, text) -> None:
    """Each error says what was wrong."""
    with pytest.raises(error, match=text):
        call()
