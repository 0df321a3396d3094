"""The derivatives across ranks, by finite differences, and the number of collectives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from syncbn import SyncBatchNorm, sync_batch_norm
from tests.syncbn.reductions import counted_reductions

SIZES = {2: (2, 1), 3: (2, 0, 1)}  # small: finite differences take one forward per entry


class Share(torch.autograd.Function):
    """This rank's rows of a tensor that every rank has; its gradient adds up what all ranks found."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Take the rows."""
        ctx.sizes = sizes
        return whole[rows(sizes)].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Put the gradients together."""
        return Whole.apply(grad, ctx.sizes), None


class Whole(torch.autograd.Function):
    """All ranks' rows put together, on every rank: the adjoint of Share."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Put the rows together."""
        ctx.sizes = sizes
        whole = part.new_zeros(sum(sizes), *part.shape[1:])
        whole[rows(sizes)] = part
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Take the rows of the gradient."""
        return Share.apply(grad, ctx.sizes), None


class Everywhere(torch.autograd.Function):
    """A parameter that every rank has; its gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Copy."""
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Add up."""
        return Sum.apply(grad)


class Sum(torch.autograd.Function):
    """The sum over ranks, on every rank: the adjoint of Everywhere."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Add up."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Copy."""
        return Everywhere.apply(grad)


def rows(sizes: tuple[int, ...]) -> slice:
    """This rank's rows."""
    start = sum(sizes[: dist.get_rank()])
    return slice(start, start + sizes[dist.get_rank()])


def check_derivatives(rank: int, world_size: int, *, masked: bool, affine: bool) -> bool:
    """First and second derivatives of the map from the whole batch to the whole output; all ranks do the same calls."""
    sizes = SIZES[world_size]
    torch.manual_seed(0)
    x = torch.randn(sum(sizes), 2, 2, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(sum(sizes), 2) < 0.7) if masked else None
    parameters = [torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2)] if affine else []

    def whole_output(whole: Tensor, *wb: Tensor) -> Tensor:
        weight, bias = (Everywhere.apply(p) for p in wb) if wb else (None, None)
        part = mask[rows(sizes)] if mask is not None else None
        y = sync_batch_norm(Share.apply(whole, sizes), None, None, weight, bias, training=True, eps=1e-2, mask=part)
        return Whole.apply(y, sizes)

    assert gradcheck(whole_output, (x, *parameters))
    assert gradgradcheck(whole_output, (x, *parameters))
    return True


def plain(rank: int, world_size: int) -> bool:
    """With weight and bias, without a mask."""
    return check_derivatives(rank, world_size, masked=False, affine=True)


def masked(rank: int, world_size: int) -> bool:
    """With a mask, without weight and bias."""
    return check_derivatives(rank, world_size, masked=True, affine=False)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("program", [plain, masked])
def test_first_and_second_derivatives_across_ranks(ranks, world_size, program) -> None:
    """Finite differences agree with backward and double backward, cross-rank terms, uneven and empty ranks included."""
    assert all(ranks.run(world_size, program))


def gradient_penalty(rank: int, world_size: int) -> float:
    """The gradient of |dL/dx|^2 with respect to the weight, in float32, against one process (third-order use of saved tensors)."""
    torch.manual_seed(0)
    whole = torch.randn(6, 3, 4)
    layer, local = SyncBatchNorm(3), torch.nn.BatchNorm1d(3).double()
    x = whole[3 * rank : 3 * rank + 3].clone().requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    dx.square().sum().backward()
    wide = whole.double().requires_grad_()
    (dwide,) = torch.autograd.grad(local(wide).pow(3).sum(), wide, create_graph=True)
    dwide.square().sum().backward()
    total = layer.weight.grad.clone()
    dist.all_reduce(total)
    wanted_x, wanted_w = wide.grad[3 * rank : 3 * rank + 3], local.weight.grad
    return max(float((x.grad - wanted_x).abs().max() / wanted_x.abs().max()), float((total - wanted_w).abs().max() / wanted_w.abs().max()))


@pytest.mark.ranks
def test_gradient_penalty_trains(ranks) -> None:
    """A penalty on the input gradient gives the parameter and input gradients of the whole batch."""
    assert max(ranks.run(2, gradient_penalty)) < 1e-5


def count(rank: int, world_size: int) -> dict[str, list[int]]:
    """The collectives of each kind of call."""
    layer = SyncBatchNorm(5)
    x = torch.randn(2, 5, 3, requires_grad=True)
    seen = {}
    with counted_reductions() as sizes:
        y = layer(x)
    seen["forward"] = sizes
    with counted_reductions() as sizes:
        y.sum().backward()
    seen["backward"] = sizes
    y = layer(x.detach())
    with counted_reductions() as sizes:
        y.sum().backward()
    seen["backward to parameters only"] = sizes
    alone = [dist.new_group([r]) for r in range(world_size)][rank]
    with counted_reductions() as sizes:
        layer.eval()(x).sum().backward()
        SyncBatchNorm(5, process_group=alone)(x).sum().backward()
    seen["eval, and a group of one"] = sizes
    return seen


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 3])
def test_one_collective_each_way(ranks, world_size) -> None:
    """One float64 all-reduce of 2C+1 forward, one of 2C backward, none in eval, none alone, none where x needs no gradient."""
    for seen in ranks.run(world_size, count):
        assert seen["forward"] == [11]
        assert seen["backward"] == [10]
        assert seen["backward to parameters only"] == []
        assert seen["eval, and a group of one"] == []


def count_one(rank: int, world_size: int) -> int:
    """Collectives of a forward and backward in a world of one."""
    with counted_reductions() as sizes:
        SyncBatchNorm(5)(torch.randn(2, 5, requires_grad=True)).sum().backward()
    return len(sizes)


@pytest.mark.ranks
def test_a_world_of_one_sends_nothing(ranks) -> None:
    """A process group of one rank behaves as none."""
    assert ranks.run(1, count_one) == [0]


def odd_gradients(rank: int, world_size: int) -> list[float]:
    """Expanded, sliced and permuted inputs and output gradients against their contiguous copies."""
    torch.manual_seed(rank)
    base = torch.randn(6, 4, 5, 3)
    inputs = [base[::2], base[:, :, 1:4], base.permute(0, 2, 1, 3), base[:1].expand(6, 4, 5, 3), base.transpose(2, 3)]
    errors = []
    for x in inputs:
        grads = [torch.tensor(2.0).expand(x.shape), torch.randn(x.shape), torch.randn(*x.shape[:2], x.shape[3], x.shape[2]).transpose(2, 3)]
        for dy in grads:
            results = []
            for given, grad in ((x.detach(), dy), (x.detach().clone(memory_format=torch.contiguous_format), dy.contiguous())):
                layer = SyncBatchNorm(x.shape[1])
                given.requires_grad_()
                y = layer(given * 1) if given.is_contiguous() else layer(given)
                y.backward(grad)
                results.append((y, given.grad, layer.weight.grad))
                given.requires_grad_(False)
            errors += [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]
    return errors


@pytest.mark.ranks
def test_strides_do_not_matter(ranks) -> None:
    """Whatever the strides of the input and of the output's gradient, the results are those of contiguous ones."""
    assert max(max(errors) for errors in ranks.run(2, odd_gradients)) < 2e-5
