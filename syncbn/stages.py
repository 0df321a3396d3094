"""The four stages of a call, two forward and two backward: all that happens on a rank between the reductions.

    forward:  local_sums -> all-reduce -> normalize        backward:  gradient_sums -> all-reduce -> input_gradient

Owns: what a stage takes and gives, and the stages of eager mode, made of four passes over the batch (`Loops`) and the arithmetic of
`vectors.py`. Does not own the passes (`loops/`), the choice among them (`kernels.py`) or the order of things (`function.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from syncbn.activations import activation_named
from syncbn.moments import Moments, pack
from syncbn.running import update_
from syncbn.shapes import Affine, Centred, Factors, accumulation_dtype
from syncbn.vectors import affine_of, factors_of, found_in, packed_gradients


class Batch(NamedTuple):
    """What is normalized, and what becomes of it: xhat weight + bias + residual, 0 outside the mask."""

    x: Tensor  # (N, C, *spatial)
    mask: Tensor | None  # boolean (N, 1, *spatial)
    weight: Tensor | None  # (C,)
    bias: Tensor | None  # (C,)
    residual: Tensor | None  # the shape of x
    eps: float


class Running(NamedTuple):
    """Buffers to be moved by a batch, and how (`running.update_`)."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,)
    momentum: float | Tensor
    unbiased: bool


class Saved(NamedTuple):
    """What a backward has of its forward: tensors that exist anyway, and vectors. Without an activation no bias and no residual."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    mask: Tensor | None  # boolean (N, 1, *spatial)
    n: Tensor  # (), float64, over all ranks, as are the next two
    mean: Tensor  # (C,)
    invstd: Tensor  # (C,)
    rounded: Tensor | None  # (3, C), the accumulation dtype: mean, scale and shift as the compiled forward has used them


class Stages(Protocol):
    """The seam between `function.py` and the ways of passing over a batch. What passes through `kept` is the stages' own affair."""

    def local_sums(self, x: Tensor, mask: Tensor | None) -> tuple[Any, Tensor]:
        """Return kept, and this rank's packed moments (2C + 1,)."""

    def normalize(self, batch: Batch, kept: Any, total: Tensor, running: Running | None) -> tuple[Tensor, Saved]:
        """Return y, a new tensor with the layout of x, and what backward needs. Moves the running statistics, if there are any."""

    def gradient_sums(self, dy: Tensor, saved: Saved) -> tuple[Any, Tensor, Tensor, Tensor]:
        """Return kept, the vector (2C,) to sum over ranks, and the gradients of weight and bias (C,)."""

    def input_gradient(self, kept: Any, saved: Saved, summed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the residual."""


class Loops(Protocol):
    """Passes over a batch (N, C, *spatial); vectors are float64 (C,), a mask is boolean (N, 1, *spatial) or None for all of it."""

    def centre(self, x: Tensor, mask: Tensor | None) -> tuple[Centred, Moments]:
        """The batch with an origin subtracted (possibly 0, then x itself), and its local moments."""

    def distance(self, x: Tensor, mean_C: Tensor, mask: Tensor | None) -> Centred:
        """The batch with about the mean subtracted (or 0, then x itself), to be normalized under this mask."""

    def normalize(self, centred: Centred, mean_C: Tensor, affine: Affine, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return (x - mean) scale + bias, a new tensor; may consume `centred`."""

    def gradient_sums(self, dy: Tensor, x: Tensor, mean_C: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return sum dy, and sum dy (x - mean)."""

    def input_gradient(self, dy: Tensor, x: Tensor, mean_C: Tensor, factors: Factors, mask: Tensor | None) -> Tensor:
        """Return a dy + b (x - mean) + c for factors (a, b, c)."""


@final
@dataclass(frozen=True)
class EagerStages:
    """The stages as single operators: four passes, and the arithmetic of vectors between them."""

    loops: Loops
    activation: str | None

    def local_sums(self, x: Tensor, mask: Tensor | None) -> tuple[Centred, Tensor]:
        """One pass over the batch, or a few."""
        centred, moments = self.loops.centre(x, mask)
        return centred, pack(moments)

    def normalize(self, batch: Batch, kept: Centred, total: Tensor, running: Running | None) -> tuple[Tensor, Saved]:
        """In the memory of the centred batch, where there is one."""
        x, mask, weight_C, bias_C, residual, eps = batch
        activation = None if self.activation is None else activation_named(self.activation)
        moments, invstd_C = found_in(total, eps)
        if running is not None:
            update_(running.mean, running.var, moments, running.momentum, unbiased=running.unbiased)
        affine = affine_of(invstd_C, weight_C, bias_C)
        is_plain = activation is None and residual is None
        y = self.loops.normalize(kept, moments.mean, affine, mask, x.dtype if is_plain else accumulation_dtype(x))
        if residual is not None:
            y.add_(residual)
        if activation is not None:
            y = activation.function(y)
        if residual is not None and mask is not None:
            y = torch.where(mask, y, 0)
        if activation is None:
            bias_C = residual = None
        return y.to(x.dtype), Saved(x, weight_C, bias_C, residual, mask, moments.n, moments.mean, invstd_C, None)

    def gradient_sums(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """With an activation, its argument is computed again; kept is the gradient of that argument."""
        dz = dy
        if self.activation is not None:
            dz = activation_named(self.activation).gradient(dy.to(accumulation_dtype(dy)), self._argument(saved))
        sum_C, dot_C = self.loops.gradient_sums(dz, saved.x, saved.mean, saved.mask)
        return dz, packed_gradients(sum_C, dot_C, saved.weight), dot_C * saved.invstd, sum_C

    def input_gradient(self, kept: Tensor, saved: Saved, summed: Tensor) -> tuple[Tensor, Tensor]:
        """One pass."""
        factors = factors_of(summed, saved.n, saved.invstd, saved.weight)
        dx = self.loops.input_gradient(kept, saved.x, saved.mean, factors, saved.mask)
        return dx, kept if saved.mask is None else torch.where(saved.mask, kept, 0)

    def _argument(self, saved: Saved) -> Tensor:
        """What the activation was applied to, in the accumulation dtype."""
        x = saved.x
        affine = affine_of(saved.invstd, saved.weight, saved.bias)
        z = self.loops.normalize(self.loops.distance(x, saved.mean, saved.mask), saved.mean, affine, saved.mask, accumulation_dtype(x))
        return z if saved.residual is None else z.add_(saved.residual)
