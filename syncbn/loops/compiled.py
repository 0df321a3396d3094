"""The four stages, compiled by Inductor: one pass over the batch each, with the arithmetic of the vectors in the same kernel.

Owns: which batches the compiled stages take, how a batch is viewed for them, and the way back where compiling fails. Does not own the
kernels (`inductor.py`) or whether they are wanted (`kernels.py`).

A batch is viewed in one of two ways, both without a copy, so that one compilation serves every number of dimensions:

    planes  (N, C, P, Q)    space innermost in memory: P parts of Q values of a plane
    rows    (G, r, C)       channels innermost: G blocks of r rows; and (R', k C), k rows side by side, where nothing is added up

float32 adds up the values of a part (16 or more sums side by side) or the rows of a block; float64 adds these.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, final

import torch
from torch import Tensor

from syncbn.loops import cpu
from syncbn.loops.inductor import Backward, Forward, Kernels, Plan, compiled_kernels
from syncbn.stages import Batch, EagerStages, Running, Saved

_EAGER = EagerStages(cpu, None)
_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
_PLANE = 2048  # values of a plane that float32 may add up
_ROWS = 256  # rows that float32 may add up one after the other
_BLOCK_BYTES = 1 << 17  # a block of rows stays in the nearest cache while its channels are passed one after the other
_WIDTH = 64  # channels side by side below which an elementwise pass takes several rows at once


class Fold(NamedTuple):
    """How a batch is viewed: the sizes for sums, and for elementwise passes."""

    is_planes: bool
    sums: tuple[int, ...]
    elements: tuple[int, ...]

    def of(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """The view of a batch with those sizes."""
        return x.view(sizes) if self.is_planes else x.movedim(1, -1).view(sizes)

    def of_mask(self, mask: Tensor | None, sizes: tuple[int, ...]) -> Tensor | None:
        """A mask (N, 1, *spatial) with those sizes, but for one channel; dense."""
        if mask is None:
            return None
        return mask.reshape((sizes[0], 1, *sizes[2:]) if self.is_planes else (*sizes[:-1], 1)).contiguous()


def stages_for(batch: Batch, activation: str | None, running: Running | None) -> CompiledStages | None:
    """The compiled stages for a batch; None where they do not reach, or cannot be compiled (said once, in a warning)."""
    x, residual = batch.x, batch.residual
    is_in_reach = x.device.type == "cpu" and x.dtype in _DTYPES and type(x) is Tensor
    if not is_in_reach or (residual is not None and residual.dtype != x.dtype):
        return None
    fold = _fold(x, batch.mask is not None)
    if fold is None:
        return None
    plan = Plan(
        is_planes=fold.is_planes,
        is_tiled=not fold.is_planes and fold.elements[1] > x.shape[1],
        ones=(tuple([size == 1 for size in fold.sums]), tuple([size == 1 for size in fold.elements])),
        dtype=x.dtype,
        weight=None if batch.weight is None else batch.weight.dtype,
        bias=None if batch.bias is None else batch.bias.dtype,
        running=None if running is None else running.mean.dtype,
        unbiased=running is not None and running.unbiased,
        has_residual=residual is not None,
        has_mask=batch.mask is not None,
        activation=activation,
    )
    kernels = _kernels(plan)
    return None if kernels is None else CompiledStages(fold, kernels, activation is not None, plan.writes_residual)


@lru_cache(maxsize=256)
def _kernels(plan: Plan) -> Kernels | None:
    if not _Compiler.works:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself, while its compiler is loaded
            return compiled_kernels(plan)
    except Exception as failure:  # noqa: BLE001  whatever a compiler or Inductor may raise: the eager loops are always there
        _Compiler.works = False
        cause = f"{type(failure).__name__}: {failure}".partition("\n")[0]
        warnings.warn(
            f"the inner loops could not be compiled ({cause}): expected torch 2.8 or newer and a C++ compiler such as "
            "g++ in the PATH; going on with the loops that need neither, which compute the same",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


class _Compiler:
    """Whether there is one, as far as is known: after one failure it is not asked again."""

    works = True


def _fold(x: Tensor, has_mask: bool) -> Fold | None:
    """How to view a batch; None if it is empty, neither contiguous nor channels-last, or has sizes without fitting divisors."""
    if x.numel() == 0:
        return None
    N, C = x.shape[:2]
    S = x.numel() // (N * C)
    if S > 1 and x.is_contiguous():
        return _planes(N, C, S)
    return _rows(N * S, C, x.element_size(), has_mask) if x.movedim(1, -1).is_contiguous() else None


@lru_cache(maxsize=4096)
def _planes(N: int, C: int, S: int) -> Fold | None:
    parts = next((parts for parts in range(-(-S // _PLANE), S // 64 + 2) if S % parts == 0), None)
    return None if parts is None else Fold(True, (N, C, parts, S // parts), (N, C, parts, S // parts))


@lru_cache(maxsize=4096)
def _rows(R: int, C: int, element_size: int, has_mask: bool) -> Fold | None:
    most = max(min(_ROWS, _BLOCK_BYTES // (C * element_size), R), 1)
    rows = next((rows for rows in range(most, most // 4, -1) if R % rows == 0), None)
    if rows is None:
        return None
    most_tiles = 1 if has_mask else max(_WIDTH // C, 1)  # a mask has one value a row
    tiles = next(tiles for tiles in range(most_tiles, 0, -1) if R % tiles == 0)
    return Fold(False, (R // rows, rows, C), (R // tiles, tiles * C))


@final
@dataclass(frozen=True)
class CompiledStages:
    """The stages for batches of one shape and layout."""

    fold: Fold
    kernels: Kernels
    is_activated: bool
    writes_residual: bool

    def local_sums(self, x: Tensor, mask: Tensor | None) -> tuple[None, Tensor]:
        """One pass, or the eager loops' few where its shift was not good. Looks at a value, for which the CPU need not wait."""
        sizes = self.fold.sums
        vector, is_far = self.kernels.local_sums(Forward(self.fold.of(x, sizes), mask=self.fold.of_mask(mask, sizes)))
        return None, _EAGER.local_sums(x, mask)[1] if is_far.item() else vector

    def normalize(self, batch: Batch, _: None, total: Tensor, running: Running | None) -> tuple[Tensor, Saved]:
        """One pass, the running statistics moved by it."""
        x, mask, weight_C, bias_C, residual, eps = batch
        y, view = torch.empty_like(x), self._elements  # not a view of what the kernel returns: y may be changed in place
        tensors = Forward(view(x), view(y), None, total, weight_C, bias_C, eps=_scalar(eps))
        tensors = tensors._replace(mask=self.fold.of_mask(mask, self.fold.elements))
        if residual is not None:
            tensors = tensors._replace(residual=view(_laid_out(residual, x)))
        if running is not None:
            tensors = tensors._replace(running_mean=running.mean, running_var=running.var, momentum=_scalar(running.momentum))
        mean_C, invstd_C, rounded_3C = self.kernels.normalize(tensors)
        if not self.is_activated:
            bias_C = residual = None
        return y, Saved(x, weight_C, bias_C, residual, mask, total[0], mean_C, invstd_C, rounded_3C)

    def gradient_sums(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass, in which the argument of the activation is computed again; kept is dy in the layout of x."""
        dy = _laid_out(dy, saved.x)
        return dy, *self.kernels.gradient_sums(self._backward(dy, saved, self.fold.sums))

    def input_gradient(self, kept: Tensor, saved: Saved, summed: Tensor) -> tuple[Tensor, Tensor]:
        """One pass, in which the gradient of the activation's argument is computed again."""
        dx, view = torch.empty_like(saved.x), self._elements
        dresidual = torch.empty_like(dx) if self.writes_residual else None
        written = (view(dx), None if dresidual is None else view(dresidual))
        self.kernels.input_gradient(
            self._backward(kept, saved, self.fold.elements)._replace(dx=written[0], dresidual=written[1], summed=summed, n=saved.n)
        )
        return dx, kept if dresidual is None else dresidual

    def _backward(self, dy: Tensor, saved: Saved, sizes: tuple[int, ...]) -> Backward:
        x, residual, view = saved.x, saved.residual, self.fold.of
        assert saved.rounded is not None
        added = None if residual is None else view(_laid_out(residual, x), sizes)
        mask = self.fold.of_mask(saved.mask, sizes)
        return Backward(view(dy, sizes), view(x, sizes), saved.rounded, saved.mean, saved.invstd, saved.weight, added, mask=mask)

    def _elements(self, x: Tensor) -> Tensor:
        return self.fold.of(x, self.fold.elements)


def _laid_out(values: Tensor, x: Tensor) -> Tensor:
    """The values with the dtype and the strides of x."""
    fits = values.stride() == x.stride() and values.dtype == x.dtype
    return values if fits else torch.empty_like(x).copy_(values)


def _scalar(value: float | Tensor) -> Tensor:
    """As a tensor, so that a value is no part of the compiled code."""
    return value if isinstance(value, Tensor) else _constant(value)


@lru_cache(maxsize=64)
def _constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
