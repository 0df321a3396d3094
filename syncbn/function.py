"""Autograd of normalization over all ranks: forward, backward, double backward.

Owns: what is saved, which collective runs when, and the derivatives. Does not own the passes over the batch (`kernels.py`), the layout of
the vectors (`moments.py`) or the running statistics (`running.py`).

Convention: every rank has its own scalar loss L_r. Gradients of inputs are those of sum_r L_r (they cross ranks through the statistics);
gradients of weight and bias are this rank's own contribution and stay local, because DistributedDataParallel averages them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncbn.collectives import ProcessGroup, sum_over_ranks
from syncbn.errors import BatchTooSmallError, EmptyBatchError
from syncbn.formula import Normalized, differentiable_gradients
from syncbn.kernels import loops_for
from syncbn.moments import Moments, pack, unpack, variance
from syncbn.recomputation import Call, call_of


class Parameters(NamedTuple):
    """What a layer brings to a batch: weight and bias (C,) or None, eps, the resolved group (None: stay local), and who it is (or None)."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    group: ProcessGroup | None
    owner: Any = None


def normalize_batch(x: Tensor, mask: Tensor | None, layer: Parameters) -> tuple[Tensor, Moments]:
    """Normalize by the statistics of the union of all ranks' batches.

        y = (x - mean) / sqrt(M2 / n + eps) * weight + bias        (n, mean, M2 over all ranks and the mask)

    Args:
        x: (N, C, *spatial), any floating dtype; may be empty on some ranks.
        mask: boolean (N, 1, *spatial), or None. Outside it y is 0 and no gradient flows.
        layer: weight, bias, eps and group; with its owner, a recomputation in backward reuses the sums of the first pass.
    Returns:
        y in the dtype and layout of x, and the moments over all ranks (not differentiable).
    Raises:
        EmptyBatchError, BatchTooSmallError: fewer than two values per channel over all ranks. Raised on every rank alike. Only on the CPU,
            where looking costs nothing; on other devices y is then the bias and the running statistics stay.

    Collectives: one all_reduce(SUM) of 2C+1 float64, in backward one of 2C float64 if x needs a gradient. Every rank of the group must
        call, also with an empty batch, in the same order of layers.
    """
    call = None if layer.group is None else call_of(layer.owner)
    y, n, mean_C, M2_C = _Normalize.apply(x, mask, call, *layer[:4])  # type: ignore[no-untyped-call]
    return y, Moments(n, mean_C, M2_C)


class _Normalize(torch.autograd.Function):
    """The forward, with the fused backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, call: Call | None, *layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight_C, bias_C, eps, group = layer
        loops = loops_for(x)
        centred, local = loops.centre(x, mask)
        if group is None:
            total = local
        else:
            total = unpack(sum_over_ranks(pack(local), group) if call is None else call.sum(pack(local), group, ctx))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            _refuse_too_few(total.n, x)
        invstd_C = (variance(total, unbiased=False) + eps).rsqrt()
        scale_C = invstd_C if weight_C is None else invstd_C * weight_C
        shift_C = torch.zeros_like(invstd_C) if bias_C is None else bias_C.double()
        y = loops.normalize(centred, total.mean, (scale_C, shift_C), mask, x.dtype)
        ctx.save_for_backward(x, weight_C, mask, total.n, total.mean, invstd_C)
        ctx.eps, ctx.group = eps, group
        ctx.dtypes = None if weight_C is None else weight_C.dtype, None if bias_C is None else bias_C.dtype
        ctx.mark_non_differentiable(total.n, total.mean, total.M2)
        return y, total.n, total.mean, total.M2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (grads[0], *ctx.saved_tensors, ctx.eps, ctx.group, ctx.needs_input_grad[0])
        # No compiled graph is differentiated twice, and a Function inside a traced backward would break the graph.
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        results = _Gradients.apply(*arguments) if twice else _gradients(*arguments)  # type: ignore[no-untyped-call]
        dx, dweight_C, dbias_C = results
        weight_dtype, bias_dtype = ctx.dtypes
        dweight_C = None if weight_dtype is None else dweight_C.to(weight_dtype)
        return dx, None, None, dweight_C, None if bias_dtype is None else dbias_C.to(bias_dtype), None, None


def _gradients(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of the input, the weight and the bias.

        g = weight dy        dx = invstd (g - sum g / n - (x - mean) invstd^2 sum g (x - mean) / n)
        dweight = sum_local dy (x - mean) invstd        dbias = sum_local dy

    Args:
        dy, x: (N, C, *spatial).
        rest: weight, mask, n, mean, invstd as saved by the forward; eps, group; and whether dx is wanted. Flat, as autograd has them.

    Collectives: one all_reduce(SUM) of (sum g, sum g (x - mean)), 2C float64, if dx is wanted: a property of the graph, the same on
        every rank.
    """
    weight_C, mask, n, mean_C, invstd_C, _, group, needs_dx = rest
    loops = loops_for(x)
    sum_C, dot_C = loops.gradient_sums(dy, x, mean_C, mask)
    if not needs_dx:
        return None, dot_C * invstd_C, sum_C
    local = torch.cat((sum_C, dot_C)) if weight_C is None else torch.cat((sum_C * weight_C, dot_C * weight_C))
    mean_g_C, mean_dot_C = (sum_over_ranks(local, group) / n.clamp(min=1)).chunk(2)
    factor_dy_C = invstd_C if weight_C is None else invstd_C * weight_C
    factors = (factor_dy_C, -(invstd_C**3) * mean_dot_C, -invstd_C * mean_g_C)
    return loops.input_gradient(dy, x, mean_C, factors, mask), dot_C * invstd_C, sum_C


class _Gradients(torch.autograd.Function):
    """`_gradients` as an operation with a derivative of its own, which is taken from the plain formula."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, Tensor, Tensor]:
        dy, x, weight_C, mask, n, mean_C, _, ctx.eps, ctx.group, _ = arguments
        ctx.save_for_backward(dy, x, weight_C, mask, n, mean_C)
        return _gradients(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *differentiable, mask, n, mean_C = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        with torch.enable_grad():
            # Views, so that the derivative is with respect to these uses only and yet itself differentiable.
            dy, x, weight_C = (t.view_as(t) if need else t for t, need in zip(differentiable, needed, strict=True))
            outputs = differentiable_gradients(dy, x, weight_C, Normalized(mask, n, mean_C, ctx.eps, ctx.group))
        pairs = [(out, grad.to(out.dtype)) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        results = iter(
            torch.autograd.grad(
                outputs=[out for out, _ in pairs],
                inputs=[t for t, need in zip((dy, x, weight_C), needed, strict=True) if need],
                grad_outputs=[grad for _, grad in pairs],
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        )
        return (*(next(results) if need else None for need in needed), *([None] * 7))


def _refuse_too_few(n: Tensor, x: Tensor) -> None:
    values = int(n.item())
    if values == 0:
        raise EmptyBatchError(
            f"no values to take batch statistics of: the input here is {tuple(x.shape)} and all other ranks (or the mask) are empty too; "
            "expected at least 2 values per channel over all ranks; feed samples, or call eval()"
        )
    if values == 1:
        raise BatchTooSmallError(
            f"Expected more than 1 value per channel when training, got 1 over all ranks (input here {tuple(x.shape)}): "
            "its variance is undefined; use a larger batch, or call eval()"
        )
