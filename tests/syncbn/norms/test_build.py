"""build_norm: every kind works on every number of dimensions, and wrong names are answered with right ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from syncbn import OptionError, SyncBatchNorm, build_norm, norm_kinds
from tests.syncbn.norms.kinds import Called


@pytest.mark.parametrize("kind", norm_kinds())
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (2, 6, 4, 5), (2, 6, 3, 2, 2)])
def test_every_kind_takes_every_shape(kind, shape) -> None:
    """Shapes are kept, gradients are finite, and evaluation works too."""
    layer = Called(kind, 6, eps=1e-4)
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


@pytest.mark.parametrize(
    ("kind", "options"), [("switchable", {}), ("batch_renorm", {"r_max": 1.0, "d_max": 0.0}), ("domain_bn", {}), ("ghost_bn", {})]
)
def test_kinds_with_formulas_of_their_own_are_differentiable_twice(kind, options) -> None:
    """First and second derivatives agree with differences. Renormalization has its limits closed: running statistics move between calls."""
    torch.manual_seed(0)
    layer = Called(kind, 2, dtype=torch.float64, **options)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


# The tracer itself makes an object of every autograd.Function, and is warned of it.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", norm_kinds())
def test_every_kind_is_traced_without_a_break(kind) -> None:
    """torch.compile(fullgraph=True) gives what the layer itself gives, forward and backward."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = Called(kind, 6)
    x = torch.randn(4, 6, 3, requires_grad=True)
    (wanted,) = torch.autograd.grad(copy.deepcopy(layer)(x).square().sum(), x)
    (found,) = torch.autograd.grad(torch.compile(layer, fullgraph=True, backend="eager")(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_kinds_are_what_their_names_say() -> None:
    """Each equals torch's own where torch has one."""
    x = torch.randn(4, 6, 5)
    assert isinstance(build_norm("sync_bn", 6, momentum=0.2), SyncBatchNorm)
    assert torch.equal(build_norm("batch_norm", 6)(x), nn.BatchNorm1d(6)(x))
    assert torch.equal(build_norm("instance_norm", 6)(x), nn.InstanceNorm1d(6, affine=True)(x))
    torch.testing.assert_close(build_norm("layer_norm", 6)(x), nn.LayerNorm(6)(x.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(build_norm("group_norm", 6, num_groups=3)(x), nn.GroupNorm(3, 6)(x))


@pytest.mark.parametrize("kind", norm_kinds())
def test_a_contiguous_batch_stays_contiguous(kind) -> None:
    """The layers behind a norm see the memory format that they would see without."""
    layer = Called(kind, 6)
    assert layer(torch.randn(4, 6, 5, 3)).is_contiguous()


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
        (("ghost_bn", 6), {"virtual_batch_size": 0}, "virtual_batch_size 0 is not a positive integer"),
        (("ghost_bn", 6), {"batch_size": 8}, "option 'batch_size' of ghost_bn is unknown: .*did you mean 'virtual_batch_size'"),
        (("batch_renorm", 6), {"r_max": 0.5}, "r_max 0.5 and d_max 5.0 leave no room"),
        (("batch_renorm", 6), {"start": 9, "r_end": 8}, "start 9, r_end 8, d_end 25000 does not go forward"),
        (("domain_bn", 6), {}, r"domains \(\) cannot be names of layers: expected at least one"),
        (("domain_bn", 6), {"domains": ("a", "keys")}, r"domains \('a', 'keys'\) cannot be names"),
        (("domain_bn", 6), {"domains": ("a", "a")}, "each once"),
        (("conditional_bn", 6), {}, "num_classes None and condition_size None do not say"),
        (("conditional_bn", 6), {"num_classes": 3, "condition_size": 4}, "expected exactly one of them"),
        (("conditional_bn", 6), {"num_classes": 0}, "num_classes 0 and condition_size None"),
        (("batch_norm", 0), {}, "num_features 0 of batch_norm is not a positive integer"),
    ],
)
def test_wrong_names_and_values_are_refused(arguments, options, text) -> None:
    """The error has the value, what was expected, and the nearest name."""
    with pytest.raises(OptionError, match=text):
        build_norm(*arguments, **options)
