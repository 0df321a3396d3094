"""Batch normalization and its gradient as plain differentiable formulas over all ranks.

Owns: the expression that the double backward is taken from. Slow and memory-hungry on purpose: it is read, not tuned.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncbn.activations import activation_named
from syncbn.collectives import ProcessGroup, differentiable_sum_over_ranks
from syncbn.shapes import accumulation_dtype, along_channels, reduced_dims


class Normalized(NamedTuple):
    """What the forward found: mask (N, 1, *spatial) or None; n () and mean (C,) over all ranks, float64; eps; group; activation's name."""

    mask: Tensor | None
    n: Tensor
    mean: Tensor
    eps: float
    group: ProcessGroup | None
    activation: str | None


class Arguments(NamedTuple):
    """What the forward was a function of."""

    x: Tensor  # (N, C, *spatial)
    weight: Tensor | None  # (C,)
    bias: Tensor | None  # (C,)
    residual: Tensor | None  # the shape of x


def differentiable_gradients(dy: Tensor, of: Arguments, found: Normalized) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of input, weight, bias and residual, as functions of these and of dy that autograd can differentiate.

        d = x - K        mean = K + S1 / n        var = S2 / n - (S1 / n)^2        with (S1, S2) = sum over ranks of (sum d, sum d^2)
        xhat = (x - mean) / sqrt(var + eps)        dz = dy activation'(xhat weight + bias + residual)        g = weight dz
        dx = (g - sum g / n - xhat sum g xhat / n) / sqrt(var + eps)
        dweight = sum_local dz xhat        dbias = sum_local dz        dresidual = dz

    Args:
        dy: the shape of x.
        of: weight None for 1, bias and residual None for 0; both are of no account without an activation.
        found: the mean serves as the constant K, so that nothing cancels.
    Returns:
        dx and dresidual in the accumulation dtype, dweight and dbias float64.

    Collectives: two all_reduce(SUM) of 2C float64, and two more where the result is differentiated.
    """
    x, weight_C, bias_C, residual = of
    dtype, dims, n = accumulation_dtype(x), reduced_dims(x), found.n.clamp(min=1)

    def mean_of(*terms: Tensor) -> tuple[Tensor, ...]:
        local = torch.cat([term.sum(dims).double() for term in terms])
        return (differentiable_sum_over_ranks(local, found.group) / n).chunk(len(terms))

    def spread(vector_C: Tensor) -> Tensor:
        return along_channels(vector_C.to(dtype), x)

    def masked(values: Tensor) -> Tensor:
        return values if found.mask is None else torch.where(found.mask, values, 0)

    distance, dy = masked(x.to(dtype) - spread(found.mean)), masked(dy.to(dtype))
    offset_C, square_C = mean_of(distance, distance.square())
    invstd_C = (square_C - offset_C.square() + found.eps).rsqrt()
    xhat = masked((distance - spread(offset_C)) * spread(invstd_C))
    if found.activation is not None:
        z = xhat if weight_C is None else xhat * spread(weight_C)
        z = z if bias_C is None else z + spread(bias_C)
        z = z if residual is None else z + residual
        dy = masked(activation_named(found.activation).gradient(dy, z))
    g = dy if weight_C is None else dy * spread(weight_C)
    mean_g_C, mean_dot_C = mean_of(g, g * xhat)
    dx = masked((g - spread(mean_g_C) - xhat * spread(mean_dot_C)) * spread(invstd_C))
    return dx, (dy * xhat).sum(dims).double(), dy.sum(dims).double(), dy
