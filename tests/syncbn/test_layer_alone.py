"""SyncBatchNorm in one process: local batch norm bit for bit, masks, state dicts, buffers, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import syncbn
from syncbn import SyncBatchNorm


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.5}]
)
def test_without_a_process_group_it_is_local_batch_norm_bit_for_bit(shape, options) -> None:
    """Alone, the layer is torch.nn.BatchNorm: outputs, gradients and buffers are equal in every bit."""
    torch.manual_seed(1)
    local = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](3, **options)
    layer = SyncBatchNorm(3, **options)
    for training in (True, True, False):
        ours, theirs = torch.randn(shape).requires_grad_(), torch.empty(0)
        theirs = ours.detach().clone().requires_grad_()
        y, wanted = layer.train(training)(ours), local.train(training)(theirs)
        (y * y).sum().backward()
        (wanted * wanted).sum().backward()
        assert torch.equal(y, wanted)
        assert torch.equal(ours.grad, theirs.grad)
    for name, value in local.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("shape", "text"),
    [((3,), "expected at least 2D input"), ((2, 4), "expected 3 in dimension 1"), ((2, 0, 3), "0 channels"), ((1, 3), "more than 1 value")],
)
def test_wrong_shapes_are_refused(shape, text) -> None:
    """A wrong shape is a ValueError that names the shape and what was expected; the right one passes."""
    with pytest.raises(ValueError, match=text):
        SyncBatchNorm(3)(torch.zeros(shape))
    SyncBatchNorm(3)(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(2, 4), "torch.bool"),
        (torch.ones(2, 3, 4, dtype=torch.bool), "does not broadcast"),
        (torch.ones(3, 4).bool(), "does not"),
    ],
)
def test_wrong_masks_are_refused(mask, text) -> None:
    """A mask of the wrong dtype or shape is refused; one that broadcasts is taken."""
    layer = SyncBatchNorm(3)
    with pytest.raises(syncbn.ShapeError, match=text):
        layer(torch.zeros(2, 3, 4), mask)
    layer(torch.zeros(2, 3, 4), torch.ones(4).bool())


def test_mask_makes_padding_irrelevant() -> None:
    """A padded batch gives on its valid part what the unpadded one gives, whatever the padding holds, also NaN; elsewhere 0."""
    x = torch.randn(2, 3, 5)
    padded = torch.cat((x, torch.full((2, 3, 4), torch.nan)), dim=2).requires_grad_()
    mask = torch.arange(9) < 5
    one, other = SyncBatchNorm(3), SyncBatchNorm(3)
    wanted, y = one(x), other(padded, mask)
    torch.testing.assert_close(y[..., :5], wanted)
    assert (y[..., 5:] == 0).all()
    torch.testing.assert_close(other.running_var, one.running_var)
    y.square().sum().backward()
    assert padded.grad.isfinite().all()
    assert (other.eval()(padded, mask)[..., 5:] == 0).all()
    untracked = SyncBatchNorm(3, track_running_stats=False).eval()
    torch.testing.assert_close(untracked(padded, mask)[..., :5], untracked(x))


def test_mask_makes_padding_irrelevant_in_evaluation() -> None:
    """Gradients of weight and bias, too, are those without the padding, which may hold NaN."""
    grads = []
    for padding in (0, 2):
        torch.manual_seed(0)
        layer = SyncBatchNorm(3).eval()
        x = nn.functional.pad(torch.randn(4, 3, 5), (0, padding), value=torch.nan).requires_grad_()
        mask = (torch.arange(5 + padding) < 5).expand(4, -1)
        layer(x, mask).square().sum().backward()
        grads.append([layer.weight.grad, layer.bias.grad, x.grad[..., :5]])
        assert not x.grad[..., 5:].any()
    for found, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted)


def test_state_dicts_go_both_ways() -> None:
    """Keys, shapes and dtypes are those of torch's layers, and values survive the way there and back."""
    layer = SyncBatchNorm(4)
    layer(torch.randn(8, 4, 3))
    for other in (nn.SyncBatchNorm(4), nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4)):
        other.load_state_dict(layer.state_dict())
        back = SyncBatchNorm(4)
        back.load_state_dict(other.state_dict())
        for name, value in layer.state_dict().items():
            assert torch.equal(back.state_dict()[name], value)
            assert other.state_dict()[name].dtype == value.dtype
            assert other.state_dict()[name].shape == value.shape
        assert list(other.state_dict()) == list(layer.state_dict())


def test_buffers_are_written_in_place() -> None:
    """References to the buffers that others hold (DDP, optimizers, averages) stay true."""
    layer = SyncBatchNorm(3, momentum=None)
    held = dict(layer.named_buffers())
    layer(torch.randn(4, 3), torch.ones(4).bool())
    for name, buffer in layer.named_buffers():
        assert buffer is held[name]
    assert int(held["num_batches_tracked"]) == 1


def test_activation_is_applied_and_checked() -> None:
    """A named activation is applied to the result; an unknown one is refused with the nearest name."""
    x = torch.randn(8, 3)
    assert torch.equal(SyncBatchNorm(3, activation="relu")(x), SyncBatchNorm(3)(x).relu())
    with pytest.raises(syncbn.OptionError, match="did you mean 'relu'"):
        SyncBatchNorm(3, activation="rleu")


def test_bf16_module_keeps_its_dtypes() -> None:
    """A layer moved to bfloat16 works, with statistics taken in float32 and stored in bfloat16."""
    layer: Any = SyncBatchNorm(3, unbiased_running_var=False).bfloat16()
    y = layer(torch.randn(300, 3, 300).bfloat16() + 5)
    y.sum().backward()
    assert y.dtype == layer.weight.grad.dtype == layer.running_mean.dtype == torch.bfloat16
    assert y.isfinite().all()
    torch.testing.assert_close(layer.running_mean.float(), torch.full((3,), 0.5), rtol=1e-2, atol=0)


def test_calls_with_and_without_a_mask_share_a_graph() -> None:
    """Alone, the one is torch's own kernel and the other is not; the statistics move by both, and backward runs through both."""
    layer, x = SyncBatchNorm(3), torch.randn(4, 3, 5, requires_grad=True)
    y = layer(layer(x), torch.ones(4, 5).bool())
    y.square().sum().backward()
    wanted = torch.nn.BatchNorm1d(3)
    leaf = x.detach().clone().requires_grad_()
    wanted(wanted(leaf)).square().sum().backward()
    torch.testing.assert_close(x.grad, leaf.grad)
    torch.testing.assert_close(layer.running_var, wanted.running_var)
