"""build_norm: every kind works on every number of dimensions, and wrong names are answered with right ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncbn import OptionError, SyncBatchNorm, build_norm, norm_kinds


@pytest.mark.parametrize("kind", norm_kinds())
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (2, 6, 4, 5), (2, 6, 3, 2, 2)])
def test_every_kind_takes_every_shape(kind, shape) -> None:
    """Shapes are kept, gradients are finite, and evaluation works too."""
    layer = build_norm(kind, 6, eps=1e-4)
    x = torch.randn(shape, requires_grad=True)
    if kind == "instance_norm" and len(shape) == 2:
        with pytest.raises(ValueError, match="needs space"):
            layer(x)
        return
    y = layer(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert x.grad.isfinite().all()
    assert layer.eval()(x).shape == x.shape


def test_kinds_are_what_their_names_say() -> None:
    """Each equals torch's own where torch has one."""
    x = torch.randn(4, 6, 5)
    assert isinstance(build_norm("sync_bn", 6, momentum=0.2), SyncBatchNorm)
    assert torch.equal(build_norm("batch_norm", 6)(x), nn.BatchNorm1d(6)(x))
    assert torch.equal(build_norm("instance_norm", 6)(x), nn.InstanceNorm1d(6, affine=True)(x))
    torch.testing.assert_close(build_norm("layer_norm", 6)(x), nn.LayerNorm(6)(x.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(build_norm("group_norm", 6, num_groups=3)(x), nn.GroupNorm(3, 6)(x))


def test_frozen_statistics_load_from_batch_norm_and_stay() -> None:
    """frozen_bn takes a BatchNorm's state dict, computes its evaluation, and has nothing to train."""
    layer = nn.BatchNorm1d(6)
    layer(torch.randn(8, 6))
    frozen = build_norm("frozen_bn", 6)
    frozen.load_state_dict(layer.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(frozen.train()(x), layer.eval()(x))
    assert list(frozen.parameters()) == []
    assert torch.equal(frozen.running_var, layer.running_var)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("sync_nb", 6), {}, "norm kind 'sync_nb' is unknown: .*did you mean 'sync_bn'"),
        (("", 6), {}, "norm kind '' is unknown: .*use one of these"),
        (("sync_bn", 6), {"momentun": 0.1}, "option 'momentun' of sync_bn is unknown: .*did you mean 'momentum'"),
        (("layer_norm", 6), {"momentum": 0.1}, "option 'momentum' of layer_norm is unknown"),
        (("group_norm", 6), {"num_groups": 4}, r"num_groups 4 does not divide num_features 6: expected one of \[1, 2, 3, 6\]"),
        (("batch_norm", 0), {}, "num_features 0 of batch_norm is not a positive integer"),
    ],
)
def test_wrong_names_and_values_are_refused(arguments, options, text) -> None:
    """The error has the value, what was expected, and the nearest name."""
    with pytest.raises(OptionError, match=text):
        build_norm(*arguments, **options)
