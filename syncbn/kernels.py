"""Which inner loops to run for a batch: the interface that all of them keep, and the choice among them.

Owns: the choice. The loops themselves are `loops/plain.py` (always right), `loops/cpu.py` and `loops/cuda.py` (fast).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from syncbn.loops import cpu, cuda, plain
from syncbn.moments import Moments
from syncbn.shapes import Affine, Centred, Factors


class Loops(Protocol):
    """Four passes over a batch (N, C, *spatial); vectors are float64 (C,), a mask is boolean (N, 1, *spatial) or None for all of it."""

    def centre(self, x: Tensor, mask: Tensor | None) -> tuple[Centred, Moments]:
        """The batch with an origin subtracted (possibly 0, then x itself), and its local moments."""

    def normalize(self, centred: Centred, mean_C: Tensor, affine: Affine, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return (x - mean) scale + bias; may consume `centred`."""

    def gradient_sums(self, dy: Tensor, x: Tensor, mean_C: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return sum dy, and sum dy (x - mean)."""

    def input_gradient(self, dy: Tensor, x: Tensor, mean_C: Tensor, factors: Factors, mask: Tensor | None) -> Tensor:
        """Return a dy + b (x - mean) + c for factors (a, b, c)."""


def loops_for(x: Tensor) -> Loops:
    """The loops for this batch: by device, and the plain ones where the fused kernels do not reach (tracing, empty batches)."""
    if torch.compiler.is_compiling() or x.numel() == 0:
        return plain
    if x.device.type == "cpu":
        return cpu
    return cuda if x.device.type == "cuda" else plain
