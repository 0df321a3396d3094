"""The four stages, compiled by Inductor: one pass over the batch each, with the arithmetic of the vectors in the same kernel.

Owns: which batches the compiled stages take (`stages_for`), how a batch is viewed for them, compiling, and the way back where that fails.
The arithmetic of the vectors is that of the eager stages (`vectors.py`).

Sums: float32 adds up blocks of at most 256 rows, or 2048 values of a plane in 16 or more lanes; float64 adds the blocks. Values are shifted by the mean
of one block. Should that be far from the mean found, the eager loops take the moments.

A batch is viewed in one of two ways, both without a copy, so that one compilation serves every number of dimensions:

    planes  (N, C, P, Q)    space innermost in memory: P parts of Q values of a plane
    rows    (G, r, C)       channels innermost: G blocks of r rows; and (R', k C), k rows side by side, where nothing is reduced
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from syncbn.activations import activation_named
from syncbn.loops import cpu
from syncbn.moments import from_shifted, pack
from syncbn.running import update_
from syncbn.shapes import accumulation_dtype
from syncbn.stages import Batch, EagerStages, Running, Saved
from syncbn.vectors import affine_of, factors_of, found_in, packed_gradients

_EAGER = EagerStages(cpu)
_ROWS = 256  # rows that float32 may add up one after the other
_BLOCK_BYTES = 1 << 17  # a block of rows stays in the nearest cache while its channels are passed one after the other
_PLANE = 2048  # values of a plane that float32 may add up
_WIDTH = 64  # channels side by side below which a pass without a sum takes several rows at once
_FAR = 16.0  # (shift - mean)^2 / variance beyond which the shift is taken anew


class Fold(NamedTuple):
    """How a batch is viewed: the sizes for sums and for elementwise passes."""

    is_planes: bool
    sums: tuple[int, ...]
    elements: tuple[int, ...]

    def of(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """The view of a batch with those sizes."""
        return x.view(sizes) if self.is_planes else x.movedim(1, -1).view(sizes)


class Plan(NamedTuple):
    """All that compiled code depends on, but for sizes larger than 1."""

    is_planes: bool
    is_tiled: bool  # elementwise views have several rows side by side
    ones: tuple[tuple[bool, ...], tuple[bool, ...]]  # which sizes of the views are 1
    dtype: torch.dtype
    weight: torch.dtype | None
    bias: torch.dtype | None
    running: torch.dtype | None
    unbiased: bool
    has_residual: bool
    activation: str | None


def stages_for(batch: Batch, running: Running | None) -> CompiledStages | None:
    """The compiled stages for a batch, or None where they are off, do not reach, or cannot be compiled."""
    if not _is_on[0]:
        return None
    x = batch.x
    fold = None if batch.mask is not None or x.device.type != "cpu" or type(x) is not Tensor else _fold(x)
    if fold is None or not _fits(batch):
        return None
    plan = Plan(
        fold.is_planes,
        not fold.is_planes and fold.elements[1] > x.shape[1],
        (tuple(size == 1 for size in fold.sums), tuple(size == 1 for size in fold.elements)),
        x.dtype,
        None if batch.weight is None else batch.weight.dtype,
        None if batch.bias is None else batch.bias.dtype,
        None if running is None else running.mean.dtype,
        running is not None and running.unbiased,
        batch.residual is not None,
        batch.activation,
    )
    kernels = _kernels(plan)
    return None if kernels is None else CompiledStages(fold, kernels)


_is_on = [True]


def _fits(batch: Batch) -> bool:
    return batch.residual is None or batch.residual.dtype == batch.x.dtype


def _fold(x: Tensor) -> Fold | None:
    """How to view a batch; None if it is neither contiguous nor channels-last, or its sizes have no fitting divisors."""
    if x.numel() == 0:
        return None
    N, C = x.shape[:2]
    S = x.numel() // (N * C)
    if S > 1 and x.is_contiguous():
        return _planes(N, C, S)
    rows = x.movedim(1, -1)
    return _rows(N * S, C, x.element_size()) if rows.is_contiguous() else None


@lru_cache(maxsize=4096)
def _planes(N: int, C: int, S: int) -> Fold | None:
    parts = next((parts for parts in range(-(-S // _PLANE), S // 64 + 2) if S % parts == 0), None)
    return None if parts is None else Fold(True, (N, C, parts, S // parts), (N, C, parts, S // parts))


@lru_cache(maxsize=4096)
def _rows(R: int, C: int, element_size: int) -> Fold | None:
    most = max(min(_ROWS, _BLOCK_BYTES // (C * element_size), R), 1)
    rows = next((rows for rows in range(most, most // 4, -1) if R % rows == 0), None)
    if rows is None:
        return None
    tiles = next((tiles for tiles in range(max(_WIDTH // C, 1), 0, -1) if R % tiles == 0), 1)
    return Fold(False, (R // rows, rows, C), (R // tiles, tiles * C))


@final
@dataclass(frozen=True)
class CompiledStages:
    """The stages for batches of one shape and layout."""

    fold: Fold
    kernels: Kernels

    def local_sums(self, x: Tensor, mask: Tensor | None) -> tuple[None, Tensor]:
        """One pass. Looks at a value, which on the CPU costs no synchronization."""
        vector, is_far = self.kernels.local_sums(self.fold.of(x, self.fold.sums))
        return None, _EAGER.local_sums(x, mask)[1] if is_far.item() else vector

    def normalize(self, batch: Batch, _: None, total: Tensor, running: Running | None) -> tuple[Tensor, Saved]:
        """One pass, the running statistics moved by it."""
        x, _, weight_C, bias_C, residual, activation, eps = batch
        y = torch.empty_like(x)
        view = self._elements
        mean_C, invstd_C, rounded_3C = self.kernels.normalize(
            view(y),
            view(x),
            None if residual is None else view(_laid_out(residual, x)),
            total,
            _detached(weight_C),
            _detached(bias_C),
            _scalar(eps),
            None if running is None else (running.mean, running.var, _scalar(running.momentum)),
        )
        if activation is None:
            bias_C = residual = None
        return y, Saved(x, weight_C, bias_C, residual, None, total[0], mean_C, invstd_C, rounded_3C)

    def gradient_sums(self, dy: Tensor, saved: Saved, activation: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass, in which the argument of the activation is computed again; kept is dy in the layout of x."""
        x, sizes = saved.x, self.fold.sums
        dy = _laid_out(dy, x)
        vector, dweight_C, dbias_C = self.kernels.gradient_sums(
            self.fold.of(dy, sizes),
            self.fold.of(x, sizes),
            None if saved.residual is None else self.fold.of(_laid_out(saved.residual, x), sizes),
            saved.mean,
            saved.invstd,
            saved.rounded,
            _detached(saved.weight),
        )
        return dy, vector, dweight_C, dbias_C

    def input_gradient(self, kept: Tensor, saved: Saved, summed: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
        """One pass, in which the gradient of the activation's argument is computed again."""
        x, view = saved.x, self._elements
        dx = torch.empty_like(x)
        has_residual = saved.residual is not None
        dresidual = torch.empty_like(x) if has_residual else kept
        self.kernels.input_gradient(
            view(dx),
            view(dresidual) if has_residual else None,
            view(kept),
            view(x),
            view(_laid_out(saved.residual, x)) if saved.residual is not None else None,
            summed,
            saved.n,
            saved.mean,
            saved.invstd,
            saved.rounded,
            _detached(saved.weight),
        )
        return dx, dresidual

    def _elements(self, x: Tensor) -> Tensor:
        return self.fold.of(x, self.fold.elements)


def _laid_out(values: Tensor, x: Tensor) -> Tensor:
    """The values with the dtype and the strides of x."""
    fits = values.stride() == x.stride() and values.dtype == x.dtype
    return values if fits else torch.empty_like(x).copy_(values)


def _detached(vector_C: Tensor | None) -> Tensor | None:
    """Without its being a parameter: Dynamo would compile once per size of it."""
    return None if vector_C is None else vector_C.detach()


def _scalar(value: float | Tensor) -> Tensor:
    """As a tensor, so that a value is no part of the compiled code."""
    return value if isinstance(value, Tensor) else _constant(value)


@lru_cache(maxsize=64)
def _constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Kernels(NamedTuple):
    """The compiled functions of a plan."""

    local_sums: Callable[..., Any]
    normalize: Callable[..., Any]
    gradient_sums: Callable[..., Any]
    input_gradient: Callable[..., Any]


@lru_cache(maxsize=256)
def _kernels(plan: Plan) -> Kernels | None:
    return Kernels(*(_compiled(f) for f in _functions(plan)))


def _compiled(function: Any) -> Callable[..., Any]:
    """The function compiled for sizes yet unknown.

    Dynamo keeps what it has compiled with the code object, and gives up after some variants: each plan has code objects of its own.
    """
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    return torch.compile(own, dynamic=True)


def _functions(plan: Plan) -> tuple[Callable[..., Any], ...]:
    """The four stages as functions of views and vectors, float64 where not said otherwise."""
    wide = accumulation_dtype(torch.empty(0, dtype=plan.dtype))
    activation = None if plan.activation is None else activation_named(plan.activation)

    def along(vector_C: Tensor) -> Tensor:
        return vector_C[None, :, None, None] if plan.is_planes else vector_C

    def summed(values: Tensor) -> Tensor:
        return values.sum(3).double().sum((0, 2)) if plan.is_planes else values.sum(1).double().sum(0)

    def across(vectors_3C: Tensor, x: Tensor) -> list[Tensor]:
        """Vectors of the accumulation dtype, spread over an elementwise view."""
        if plan.is_tiled:
            # Inductor writes down what is viewed by strides; else it would take a remainder for each value of the batch.
            vectors_3C = vectors_3C.repeat(1, x.shape[1] // vectors_3C.shape[1]).as_strided((3, x.shape[1]), (x.shape[1], 1))
        return [along(v) for v in vectors_3C.unbind()]

    def argument(x: Tensor, residual: Tensor | None, spread: list[Tensor]) -> Tensor:
        origin, scale, shift = spread
        z = (x.to(wide) - origin) * scale + shift
        return z if residual is None else z + residual.to(wide)

    def local_sums(x: Tensor) -> tuple[Tensor, Tensor]:
        origin_C = (x[0, :, 0].to(wide).mean(1) if plan.is_planes else x[0].to(wide).mean(0))
        values = x.to(wide) - along(origin_C)
        sum_C, squares_C = summed(values), summed(values.square())
        n = torch.full((), x.numel() // origin_C.shape[0], dtype=torch.float64)
        moments = from_shifted(n, origin_C.double(), sum_C, squares_C)
        return pack(moments), (sum_C * sum_C > _FAR / (1 + _FAR) * n * squares_C).any()

    def normalize(y, x, residual, total, weight_C, bias_C, eps, running) -> tuple[Tensor, Tensor, Tensor]:
        moments, invstd_C = found_in(total, eps)
        if running is not None:
            mean_C, var_C, momentum = running
            update_(mean_C, var_C, moments, momentum, unbiased=plan.unbiased)
        scale_C, bias_C = affine_of(invstd_C, weight_C, bias_C)
        origin_C = moments.mean.to(wide)
        rounded_3C = torch.stack((origin_C, scale_C.to(wide), (bias_C + (origin_C - moments.mean) * scale_C).to(wide)))
        z = argument(x, residual, across(rounded_3C, x))
        y.copy_(z if activation is None else activation.function(z))
        return moments.mean, invstd_C, rounded_3C

    def gradient_sums(dy, x, residual, mean_C, invstd_C, rounded_3C, weight_C) -> tuple[Tensor, Tensor, Tensor]:
        spread = [along(v) for v in rounded_3C.unbind()]
        dz = dy.to(wide)
        if activation is not None:
            dz = activation.gradient(dz, argument(x, residual, spread))
        sum_C = summed(dz)
        dot_C = summed(dz * (x.to(wide) - spread[0])) + (rounded_3C[0] - mean_C) * sum_C
        return packed_gradients(sum_C, dot_C, weight_C), dot_C * invstd_C, sum_C

    def input_gradient(dx, dresidual, dy, x, residual, total, n, mean_C, invstd_C, rounded_3C, weight_C) -> Tensor:
        a_C, b_C, c_C = factors_of(total, n, invstd_C, weight_C)
        factors_3C = torch.stack((a_C, b_C, c_C + (rounded_3C[0] - mean_C) * b_C)).to(wide)
        a, b, c = across(factors_3C, x)
        spread = across(rounded_3C, x)
        dz = dy.to(wide)
        if activation is not None:
            dz = activation.gradient(dz, argument(x, residual, spread))
        if dresidual is not None:
            dresidual.copy_(dz)
        dx.copy_(dz * a + ((x.to(wide) - spread[0]) * b + c))
        return factors_3C

    return local_sums, normalize, gradient_sums, input_gradient
