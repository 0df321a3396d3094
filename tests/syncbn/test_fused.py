"""Activation and residual inside the normalization: the same numbers, derivatives twice, and nothing stored that can be computed again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from syncbn import ShapeError, SyncBatchNorm, inner_loops, sync_batch_norm
from syncbn.activations import activation_named
from syncbn.function import Parameters, normalized
from tests.syncbn.oracle import error

NAMES = ["elu", "gelu", "hardswish", "leaky_relu", "relu", "relu6", "silu"]


def composed(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, name: str) -> Tensor:
    """The definition, by torch's own operators."""
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=1e-2)
    return activation_named(name).function(y + residual)


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """x, weight, bias, residual; no value lies on a kink."""
    torch.manual_seed(2)
    shapes = [(3, 2, 4), (2,), (2,), (3, 2, 4)]
    return [torch.randn(shape, dtype=torch.float64).mul(2).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_operators_one_after_the_other(name, dtype) -> None:
    """Outputs and the four gradients."""
    ours, theirs = inputs(dtype), inputs(torch.float64)
    x, weight, bias, residual = ours
    y, wanted = normalized(x, None, Parameters(weight, bias, 1e-2, None, None, name, residual)), composed(*theirs, name)
    y.pow(2).sum().backward()
    wanted.pow(2).sum().backward()
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert error(y.detach(), wanted.detach()) < bound
    assert max(error(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)) < bound


@pytest.mark.parametrize("kind", ["aten", "compiled"])
@pytest.mark.parametrize("wanted", [(0,), (1, 2), (3,), (1, 2, 3), (0, 3)])
def test_what_needs_no_gradient_gets_none(wanted, kind) -> None:
    """A first layer, a frozen one, a residual from elsewhere: the gradients that are needed are the same, whichever the others."""

    def gradients(needed: tuple[int, ...]) -> list[Tensor | None]:
        x, weight, bias, residual = tensors = [t.detach().requires_grad_(k in needed) for k, t in enumerate(inputs(torch.float32))]
        with inner_loops(kind):
            normalized(x, None, Parameters(weight, bias, 1e-2, None, None, "relu", residual)).pow(2).sum().backward()
        return [tensor.grad for tensor in tensors]

    found, whole = gradients(wanted), gradients((0, 1, 2, 3))
    assert [k for k in range(4) if found[k] is not None] == list(wanted)
    assert all(error(found[k], whole[k]) < 1e-6 for k in wanted)


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name) -> None:
    """Finite differences, with respect to input, weight, bias and residual."""

    def output(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return normalized(x, None, Parameters(weight, bias, 1e-2, None, None, name, residual))

    assert gradcheck(output, inputs(torch.float64))
    assert gradgradcheck(output, inputs(torch.float64))


def test_outside_the_mask_there_is_nothing_in_evaluation() -> None:
    """The same with running statistics: NaN outside reaches no gradient."""
    x, weight, bias, residual = (t.detach() for t in inputs(torch.float64))
    residual[..., 3] = x[..., 3] = torch.nan
    for tensor in (x, weight, residual):
        tensor.requires_grad_()
    running = torch.zeros(2).double(), torch.ones(2).double()
    mask = torch.tensor([True, True, True, False])
    y = sync_batch_norm(x, *running, weight, bias, training=False, mask=mask, activation="silu", residual=residual)
    y.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, weight, residual))
    assert not y[..., 3].any()


def test_outside_the_mask_there_is_nothing() -> None:
    """There y is 0 and the residual gets no gradient, whatever it holds; inside it is the formula."""
    x, weight, bias, residual = (t.detach() for t in inputs(torch.float64))
    mask = torch.tensor([True, True, True, False])
    residual[..., 3] = torch.nan
    x.requires_grad_()
    residual.requires_grad_()
    y = sync_batch_norm(x, None, None, weight, bias, training=True, eps=1e-2, mask=mask, activation="silu", residual=residual)
    torch.testing.assert_close(y[..., :3], composed(x[..., :3], weight, bias, residual[..., :3], "silu"))
    y.sum().backward()
    assert not y[..., 3].any()
    assert not residual.grad[..., 3].any()
    assert residual.grad[..., :3].any()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_alone_and_in_evaluation(training) -> None:
    """There it is torch's batch norm, then the residual, then the activation, bit for bit, and differentiable."""
    torch.manual_seed(0)
    layer, local = SyncBatchNorm(3, activation="gelu").train(training), nn.BatchNorm1d(3).train(training)
    x, residual = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 3, 5, requires_grad=True)
    y, wanted = layer(x, residual=residual), torch.nn.functional.gelu(local(x) + residual)
    assert torch.equal(y, wanted)
    ours, theirs = (torch.autograd.grad(out.square().sum(), (x, residual)) for out in (y, wanted))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_residual_of_another_shape_is_refused() -> None:
    """Nothing is broadcast; the message says what came and what to do."""
    with pytest.raises(ShapeError, match=r"residual is torch.float32 of shape \(2, 3, 1\)"):
        SyncBatchNorm(3)(torch.randn(2, 3, 4), residual=torch.randn(2, 3, 1))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_input_is_kept(name) -> None:
    """Of the batch's size, autograd keeps x and the residual, which exist anyway; the argument of the activation is computed again."""
    x, residual = (torch.randn(64, 8, 16, requires_grad=True) for _ in range(2))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        normalized(x, None, Parameters(torch.ones(8), torch.ones(8), 1e-5, None, None, name, residual))
    large = {pointer for pointer, size in kept.items() if size > 64 * 1024 // 4}
    assert large == {x.data_ptr(), residual.data_ptr()}


def across(rank: int, world_size: int) -> list[float]:
    """A residual block's end on uneven shares, against the whole batch in one process."""
    torch.manual_seed(0)
    x, residual, dy = (torch.randn(5, 3, 4, dtype=torch.float64) for _ in range(3))
    share = slice(0, 4) if rank == 0 else slice(4, 5)
    layer = SyncBatchNorm(3, eps=1e-2, dtype=torch.float64, activation="relu")
    mine = [t[share].clone().requires_grad_() for t in (x, residual)]
    layer(mine[0], residual=mine[1]).backward(dy[share])
    wide = [t.clone().requires_grad_() for t in (x, residual)]
    ones, zeros = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    composed(wide[0], ones, zeros, wide[1], "relu").backward(dy)
    return [error(a.grad, b.grad[share]) for a, b in zip(mine, wide, strict=True)]


@pytest.mark.ranks
def test_across_ranks(ranks) -> None:
    """Gradients of input and residual are those of the whole batch."""
    assert max(max(errors) for errors in ranks.run(2, across)) < 1e-12
