"""Every kind of norm on a rank without samples, or with one value: a job goes on, or the error says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncbn import BatchTooSmallError, build_norm, norm_kinds
from tests.syncbn.norms.kinds import Called

SHAPES = [(0, 6, 4), (0, 6, 4, 5), (0, 6, 1, 1), (0, 6)]


# instance_norm needs space whatever the batch.
CASES = [(kind, shape) for kind in norm_kinds() for shape in SHAPES if kind != "instance_norm" or len(shape) > 2]


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_every_kind_takes_an_empty_batch(kind, shape) -> None:
    """Forward and backward run, every parameter gets a gradient of 0, and no running statistic moves."""
    layer = Called(kind, 6)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers() if "running" in name}
    for training in (True, False):
        x = torch.empty(shape, requires_grad=True)
        y = layer.train(training)(x)
        y.sum().backward()
        assert y.shape == x.shape == x.grad.shape
        assert y.dtype == x.dtype
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
    assert all(torch.equal(buffer, dict(layer.named_buffers())[name]) for name, buffer in before.items())


def test_instance_norm_without_parameters_takes_an_empty_batch() -> None:
    """There is nothing to scale by."""
    x = torch.empty(0, 3, 5, requires_grad=True)
    y = build_norm("instance_norm", 3, affine=False)(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 3, 5)


def train(rank: int, world_size: int, kind: str) -> list[torch.Tensor]:
    """One step of DistributedDataParallel in which the last rank has no sample: the averaged gradients."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Conv2d(2, 4, 1), Called(kind, 4)), broadcast_buffers=False)
    x = torch.randn(3, 2, 4, 4)[: 0 if rank == world_size - 1 else 3]
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.ranks
@pytest.mark.parametrize("kind", norm_kinds())
def test_a_rank_without_samples_does_not_end_a_job(kind, ranks) -> None:
    """Gradients are those of the full rank, divided by the number of ranks, on both."""
    full, empty = ranks.run(2, train, kind)
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Conv2d(2, 4, 1), Called(kind, 4))
    alone(torch.randn(3, 2, 4, 4)).square().sum().backward()
    for mine, other, parameter in zip(full, empty, alone.parameters(), strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, parameter.grad / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "shape", "text"),
    [
        ("batch_norm", (1, 6), r"Expected more than 1 value per channel when training, got input size \(1, 6\): .*use a larger batch"),
        ("batch_norm", (1, 6, 1, 1), "more than 1 value per channel .*sync_bn or group_norm"),
        ("instance_norm", (4, 6, 1), r"Expected more than 1 spatial element .*\(4, 6, 1\): .*choose group_norm"),
    ],
)
def test_one_value_is_refused_with_a_remedy(kind, shape, text) -> None:
    """The words are torch's, with what to do after them; one more value is accepted."""
    layer = build_norm(kind, 6)
    with pytest.raises(BatchTooSmallError, match=text):
        layer(torch.randn(shape))
    assert layer(torch.randn(2, *shape[1:-1], 2 if len(shape) > 2 else shape[-1])).isfinite().all()
