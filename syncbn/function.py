"""Autograd of normalization over all ranks: forward, backward, double backward.

Owns: which collective runs when, what autograd keeps, and the derivatives. Does not own what happens between the collectives (`stages.py`),
the layout of the vectors (`moments.py`) or the running statistics (`running.py`).

Convention: every rank has its own scalar loss L_r. Gradients of inputs are those of sum_r L_r (they cross ranks through the statistics);
gradients of weight and bias are this rank's own contribution and stay local, because DistributedDataParallel averages them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncbn import overlap
from syncbn.collectives import ProcessGroup, WatchedGroup, start_sum_over_ranks, sum_over_ranks
from syncbn.errors import BatchTooSmallError, EmptyBatchError
from syncbn.formula import Arguments, Normalized, differentiable_gradients
from syncbn.kernels import loops_for, stages_for
from syncbn.moments import Moments, unpack
from syncbn.recomputation import Call, call_of
from syncbn.running import update_
from syncbn.stages import Batch, EagerStages, Running, Saved, Stages


class Parameters(NamedTuple):
    """What a layer brings to a batch.

    weight and bias (C,) or None, eps, the resolved group (None: stay local), who it is (or None), the name of an activation, a residual of
    the shape of the batch that is added before it, and the running statistics to move.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    group: ProcessGroup | None
    owner: Any = None
    activation: str | None = None
    residual: Tensor | None = None
    running: Running | None = None


def normalize_batch(x: Tensor, mask: Tensor | None, layer: Parameters) -> tuple[Tensor, Moments]:
    """`normalized`, and the moments over all ranks (not differentiable)."""
    y, total = _normalized(x, mask, layer)
    return y, unpack(total)


def normalized(x: Tensor, mask: Tensor | None, layer: Parameters) -> Tensor:
    """Normalize by the statistics of the union of all ranks' batches.

        y = activation((x - mean) / sqrt(M2 / n + eps) * weight + bias + residual)        (n, mean, M2 over all ranks and the mask)

    Args:
        x: (N, C, *spatial), any floating dtype; may be empty on some ranks.
        mask: boolean (N, 1, *spatial), or None. Outside it y is 0 and no gradient flows.
        layer: with its owner, a recomputation in backward reuses the sums of the first pass. Running statistics are moved in place.
    Returns:
        y in the dtype and layout of x. What is kept for backward are x and vectors, with an activation also the residual: the argument of
        the activation is computed again.
    Raises:
        EmptyBatchError, BatchTooSmallError: fewer than two values per channel over all ranks. Raised on every rank alike. Only on the CPU,
            where looking costs nothing; on other devices y is then the bias and the running statistics stay.

    Collectives: one all_reduce(SUM) of 2C+1 float64, in backward one of 2C float64 if x needs a gradient. Every rank of the group must
        call, also with an empty batch, in the same order of layers.
    """
    return _normalized(x, mask, layer)[0]


def _normalized(x: Tensor, mask: Tensor | None, layer: Parameters) -> tuple[Tensor, Tensor]:
    call = None if layer.group is None else call_of(layer.owner)
    # A graph that is traced moves the buffers outside the Function: inside, the mutation would not be seen.
    running = None if torch.compiler.is_compiling() else layer.running
    settings = _Settings(layer.eps, layer.group, layer.activation, running, call)
    y, total = _Normalize.apply(x, layer.weight, layer.bias, layer.residual, mask, settings)  # type: ignore[no-untyped-call]
    if layer.group is not None and y.requires_grad and not torch.compiler.is_compiling():
        overlap.prepare()
        y = _StartEarly.apply(y)  # type: ignore[no-untyped-call]
    if running is None and layer.running is not None:
        mean_C, var_C, momentum, unbiased = layer.running
        update_(mean_C, var_C, unpack(total), momentum, unbiased=unbiased)
    return y, total


class _Settings(NamedTuple):
    """What the forward needs besides tensors of the graph."""

    eps: float
    group: ProcessGroup | None
    activation: str | None
    running: Running | None
    call: Call | None


class _Normalize(torch.autograd.Function):
    """The forward, with the fused backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        weight_C, bias_C, residual, mask, (eps, group, activation, running, call) = arguments
        batch = Batch(x, mask, weight_C, bias_C, residual, eps)
        ctx.stages = stages_for(batch, activation, running)
        kept, local = ctx.stages.local_sums(x, mask)
        total = sum_over_ranks(local, group) if call is None else call.sum(local, group, ctx)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            _refuse_too_few(total, x)
        y, saved = ctx.stages.normalize(batch, kept, total, running)
        ctx.save_for_backward(*saved)
        ctx.eps, ctx.group, ctx.activation, ctx.begun = eps, group, activation, None
        ctx.dtypes = [None if t is None else t.dtype for t in (weight_C, bias_C, residual)]
        ctx.mark_non_differentiable(total)
        return y, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # No compiled graph is differentiated twice, and a Function inside a traced backward would break the graph.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dx, *others = _Gradients.apply(grads[0], *ctx.saved_tensors, _wanted_of(ctx))  # type: ignore[no-untyped-call]
        else:
            begun, ctx.begun = ctx.begun or _begin(grads[0], Saved(*ctx.saved_tensors), _wanted_of(ctx)), None
            dx, *others = _end(grads[0], begun)
        needed = (None if dtype is None or grad is None else grad.to(dtype) for grad, dtype in zip(others, ctx.dtypes, strict=True))
        return dx, *needed, None, None


class _StartEarly(torch.autograd.Function):
    """The result of `_Normalize` as it is. In backward, begins the reduction that `_Normalize` ends; all else that is ready comes between.

    Not where a derivative of the backward is wanted, nor where the reduction is watched: then all happens at once in `_Normalize`.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        node = ctx.next_functions[0][0]
        if node.needs_input_grad[0] and not torch.is_grad_enabled() and not isinstance(node.group, WatchedGroup):
            node.begun = _begin(grads[0], Saved(*node.saved_tensors), _wanted_of(node))
            overlap.put_last(node)
        return grads[0]


class _Wanted(NamedTuple):
    """What a backward needs besides tensors."""

    stages: Stages
    eps: float
    group: ProcessGroup | None
    activation: str | None
    needs_dx: bool
    needs_dresidual: bool


def _wanted_of(ctx: Any) -> _Wanted:
    return _Wanted(ctx.stages, ctx.eps, ctx.group, ctx.activation, ctx.needs_input_grad[0], ctx.needs_input_grad[3])


class _Begun(NamedTuple):
    """A backward up to its reduction."""

    saved: Saved
    wanted: _Wanted
    kept: Any
    dweight: Tensor  # (C,)
    dbias: Tensor  # (C,)
    summed: Callable[[], Tensor] | None
    """Waits for the reduction; None where there is none."""


def _begin(dy: Tensor, saved: Saved, wanted: _Wanted) -> _Begun:
    """Add up this rank's gradients, and begin to add up the ranks' sums if the gradient of the input is wanted. See `_gradients`."""
    kept, local, dweight_C, dbias_C = wanted.stages.gradient_sums(dy, saved)
    summed = start_sum_over_ranks(local, wanted.group) if wanted.needs_dx else None
    return _Begun(saved, wanted, kept, dweight_C, dbias_C, summed)


def _end(dy: Tensor, begun: _Begun) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """Wait for the ranks' sums, and return what `_gradients` does."""
    saved, wanted = begun.saved, begun.wanted
    dx = dresidual = None
    if begun.summed is not None:
        dx, dresidual = wanted.stages.input_gradient(begun.kept, saved, begun.summed())
    elif wanted.needs_dresidual:
        dz = EagerStages(loops_for(dy), wanted.activation).gradient_sums(dy, saved)[0]
        dresidual = dz if saved.mask is None else torch.where(saved.mask, dz, 0)
    return dx, begun.dweight, begun.dbias, dresidual


def _gradients(dy: Tensor, *arguments: Any) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """The gradients of the input, the weight, the bias and the residual.

        dz = dy activation'        g = weight dz        dx = invstd (g - sum g / n - (x - mean) invstd^2 sum g (x - mean) / n)
        dweight = sum_local dz (x - mean) invstd        dbias = sum_local dz        dresidual = dz

    Args:
        dy: (N, C, *spatial).
        arguments: the fields of `Saved`, and a `_Wanted`. Flat, as autograd has them.

    Collectives: one all_reduce(SUM) of (sum g, sum g (x - mean)), 2C float64, if dx is wanted: a property of the graph, the same on
        every rank.
    """
    return _end(dy, _begin(dy, Saved(*arguments[:-1]), arguments[-1]))


class _Gradients(torch.autograd.Function):
    """`_gradients` as an operation with a derivative of its own, which is taken from the plain formula."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        dy, x, weight_C, bias_C, residual, mask, n, mean_C, _, _, wanted = arguments
        ctx.wanted = wanted
        ctx.save_for_backward(dy, x, weight_C, bias_C, residual, mask, n, mean_C)
        return _gradients(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *differentiable, mask, n, mean_C = ctx.saved_tensors
        needed = ctx.needs_input_grad[:5]
        with torch.enable_grad():
            # Views, so that the derivative is with respect to these uses only and yet itself differentiable.
            inputs = [t.view_as(t) if need else t for t, need in zip(differentiable, needed, strict=True)]
            found = Normalized(mask, n, mean_C, ctx.wanted.eps, ctx.wanted.group, ctx.wanted.activation)
            outputs = differentiable_gradients(inputs[0], Arguments(*inputs[1:]), found)
        pairs = [(out, grad.to(out.dtype)) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        results = iter(
            torch.autograd.grad(
                outputs=[out for out, _ in pairs],
                inputs=[t for t, need in zip(inputs, needed, strict=True) if need],
                grad_outputs=[grad for _, grad in pairs],
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        )
        return (*(next(results) if need else None for need in needed), *([None] * 6))


def _refuse_too_few(total: Tensor, x: Tensor) -> None:
    values = int(total[0])
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
