"""What every rank ought to compute: batch normalization of the whole batch, by one process, in float64.

Owns the splits of a batch over ranks, the expectation, and the one table of tolerances. Used by the tests and by the programs that
they run in spawned processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TOLERANCES = {
    # dtype: (largest error relative to the largest entry, reason)
    torch.float64: (1e-12, "float64 throughout; only the order of sums differs"),
    torch.float32: (1e-5, "elementwise work in float32, sums and statistics in float64; measured 5e-7"),
    torch.bfloat16: (2**-8, "work in float32, then one rounding: half a unit in the last place of 8 bits"),
    torch.float16: (2**-11, "work in float32, then one rounding: half a unit in the last place of 11 bits"),
}
# Parameter gradients and running statistics are float32 for the half types: they are not rounded to the input's dtype.
STATISTICS_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}

SPLITS = {
    "even": (2, 2, 2, 2, 2),
    "uneven": (1, 4, 2, 3, 5),
    "empty": (3, 0, 2, 0, 1),
    "first empty": (0, 4, 1, 2, 0),
    "single samples": (1, 1, 1, 1, 1),
}


@dataclass(frozen=True)
class Case:
    """One comparison: how the batch is cut, what it looks like, and how the layer is built."""

    split: str = "uneven"
    spatial: tuple[int, ...] = (3, 2)
    C: int = 5
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    mean: float = 3.0
    std: float = 2.0
    steps: int = 2
    masked: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def sizes(self, world_size: int) -> tuple[int, ...]:
        """Samples per rank."""
        return SPLITS[self.split][:world_size]

    def share(self, rank: int, world_size: int) -> slice:
        """The rows of the whole batch that are a rank's."""
        sizes = self.sizes(world_size)
        return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))

    def data(self, world_size: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Whole batch, whole output gradient (both of the case's dtype) and mask (N, *spatial): the same on every rank."""
        generator = torch.Generator().manual_seed(7 * step + 1)
        shape = (sum(self.sizes(world_size)), self.C, *self.spatial)
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * self.std + self.mean
        dy = torch.randn(shape, generator=generator, dtype=torch.float64)
        mask = torch.rand((shape[0], *self.spatial), generator=generator) < (0.6 if self.masked else 2.0)
        return x.to(self.dtype), dy.to(self.dtype), mask

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, float64 of values that float32 has exactly."""
        generator = torch.Generator().manual_seed(3)
        return (torch.rand(self.C, generator=generator) + 0.5).double(), torch.randn(self.C, generator=generator).double()


@dataclass
class Expected:
    """float64 results for the whole batch. Parameter gradients are summed over the batch."""

    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    mean: Tensor
    var: Tensor  # biased
    n: int


def expected(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, *, eps: float = 1e-5) -> Expected:
    """Forward and backward by the definition, differentiated by autograd; outside the mask y is 0."""
    x, weight, bias = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    channel = (1, -1) + (1,) * (x.dim() - 2)
    rows = x.movedim(1, -1)[mask]
    mean, var = rows.mean(0), rows.var(0, correction=0)
    y = (x - mean.view(channel)) * (var.view(channel) + eps).rsqrt() * weight.view(channel) + bias.view(channel)
    y = y * mask.unsqueeze(1)
    y.backward(dy.double())
    return Expected(y.detach(), x.grad, weight.grad, bias.grad, mean.detach(), var.detach(), rows.shape[0])


def error(actual: Tensor, wanted: Tensor, *, scale: float = 0.0) -> float:
    """Largest difference, relative to the largest wanted entry or to `scale`; 0 for empty tensors, infinite for a wrong shape or NaN."""
    if actual.shape != wanted.shape:
        return float("inf")
    if wanted.numel() == 0:
        return 0.0
    difference = (actual.double() - wanted.double()).abs().max() / wanted.abs().max().clamp(min=max(scale, 1e-30))
    return float(difference) if bool(difference.isfinite()) else float("inf")
