"""The arithmetic on vectors (C,) between the passes over a batch and the reductions over ranks. Pure, float64, without a branch on values.

Owns: what a summed vector means for a forward and a backward. Does not own its layout (`moments.py`) or the passes (`loops/`).
Both the eager and the compiled stages are made of these functions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncbn.moments import Moments, unpack, variance
from syncbn.shapes import Affine, Factors


class Found(NamedTuple):
    """What a batch is normalized by, float64, over all ranks."""

    moments: Moments
    invstd: Tensor  # (C,), 1 / sqrt(M2 / n + eps)


def found_in(total: Tensor, eps: float | Tensor) -> Found:
    """The statistics in a packed vector (2C + 1,) that was summed over ranks."""
    moments = unpack(total)
    return Found(moments, (variance(moments, unbiased=False) + eps).rsqrt())


def affine_of(invstd_C: Tensor, weight_C: Tensor | None, bias_C: Tensor | None) -> Affine:
    """Scale and bias of y = (x - mean) scale + bias."""
    scale_C = invstd_C if weight_C is None else invstd_C * weight_C
    return scale_C, torch.zeros_like(invstd_C) if bias_C is None else bias_C.double()


def packed_gradients(sum_C: Tensor, dot_C: Tensor, weight_C: Tensor | None) -> Tensor:
    """The vector (2C,) that a backward sums over ranks: sum g, sum g (x - mean), with g = weight dz."""
    vector = torch.cat((sum_C, dot_C))
    return vector if weight_C is None else vector.view(2, -1).mul(weight_C).view(-1)


def factors_of(summed: Tensor, n: Tensor, invstd_C: Tensor, weight_C: Tensor | None) -> Factors:
    """The factors of dx = a dz + b (x - mean) + c.

    a = weight invstd        b = -invstd^3 sum g (x - mean) / n        c = -invstd sum g / n
    """
    mean_g_C, mean_dot_C = (summed / n.clamp(min=1)).chunk(2)
    return invstd_C if weight_C is None else invstd_C * weight_C, -(invstd_C**3) * mean_dot_C, -invstd_C * mean_g_C
