"""ghost_bn: each virtual batch by its own statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncbn import BatchTooSmallError, build_norm, layer_statistics, recalibrate
from tests.syncbn.norms.oracles import C, errors_against, filled, moved, per_channel, steps_on_ranks, whole_batch


def reference(x, p, state, training):
    """Seven samples in virtual batches of at least three: four and three, one after the other."""
    weight, bias = per_channel(p["weight"], x), per_channel(p["bias"], x)
    if not training:
        mean, var = per_channel(state["running_mean"], x), per_channel(state["running_var"], x)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias
    parts = []
    for part in (x[:4], x[4:]):
        dims = (0, *range(2, x.dim()))
        xhat = (part - part.mean(dims, keepdim=True)) / (part.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
        parts.append(xhat * weight + bias)
        moved(state, part)
    return torch.cat(parts)


@pytest.mark.parametrize("spatial", [(3, 2), ()])
def test_equals_the_formula(spatial) -> None:
    """Outputs, gradients, running statistics and evaluation, in float64."""
    options = {"virtual_batch_size": 3}
    wanted = whole_batch(reference, filled(build_norm("ghost_bn", C, **options)), 7, spatial)
    errors = errors_against(wanted, [steps_on_ranks(0, 1, "ghost_bn", options, spatial)])
    assert max(errors.values()) < 1e-12, errors


def test_a_batch_no_larger_than_a_virtual_one_is_local_batch_norm() -> None:
    """Bit for bit, momentum=None included."""
    x = torch.randn(5, 4, 3)
    for momentum in (0.3, None):
        ghost, plain = build_norm("ghost_bn", 4, virtual_batch_size=8, momentum=momentum), nn.BatchNorm1d(4, momentum=momentum)
        assert torch.equal(ghost(x), plain(x))
        assert torch.equal(ghost(x + 1), plain(x + 1))
        assert all(torch.equal(mine, its) for mine, its in zip(ghost.state_dict().values(), plain.state_dict().values(), strict=True))


def test_one_value_per_virtual_batch_is_refused() -> None:
    """The error counts them; with space the same size is fine."""
    layer = build_norm("ghost_bn", 4, virtual_batch_size=1)
    with pytest.raises(BatchTooSmallError, match=r"got 3 virtual batches with 1 in the last \(input \(3, 4\), virtual_batch_size 1\)"):
        layer(torch.randn(3, 4))
    assert layer(torch.randn(3, 4, 2)).isfinite().all()


def test_statistics_are_seen_and_estimated_anew() -> None:
    """layer_statistics lists the layer; recalibrate gives it the population's."""
    layer = build_norm("ghost_bn", 4, virtual_batch_size=2)
    x = torch.randn(40, 4, dtype=torch.float64).float()
    recalibrate(layer, x.split(8))
    torch.testing.assert_close(layer_statistics(layer)[""].running_mean, x.mean(0))
    torch.testing.assert_close(layer.running_var, x.var(0, correction=0))
