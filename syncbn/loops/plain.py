"""The four inner loops as plain tensor formulas: for torch.compile (which fuses them), masks, empty batches and any device.

Owns: correctness everywhere. Not owned: speed in eager mode (`loops/cpu.py`, `loops/cuda.py`).

Legend: N batch, C channels, the rest spatial; statistics are float64 vectors (C,). A mask is boolean (N, 1, *spatial).
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncbn.moments import Moments
from syncbn.shapes import Affine, Centred, Factors, accumulation_dtype, along_channels, reduced_dims, values_per_channel


def centre(x: Tensor, mask: Tensor | None) -> tuple[Centred, Moments]:
    """Subtract each channel's mean and take the moments of what remains: the corrected two-pass algorithm.

        d = x - m        mean = m + sum d / n        M2 = sum d^2 - (sum d)^2 / n        (m: the mean, rounded)

    Branch-free: with nothing to count every sum is 0, and so are the moments.
    Source: Chan, Golub, LeVeque 1983, eq. 1.7.
    """
    dims = reduced_dims(x)
    values = x.to(accumulation_dtype(x))
    if mask is None:
        count = torch.full((), values_per_channel(x), dtype=torch.float64, device=x.device)
    else:
        values = torch.where(mask, values, 0)
        count = mask.sum(dtype=torch.float64)
    divisor = count.clamp(min=1)
    origin_C = (values.sum(dims).double() / divisor).to(values.dtype)
    values = values - along_channels(origin_C, x)
    if mask is not None:
        values = torch.where(mask, values, 0)
    sum_C, squares_C = values.sum(dims).double(), values.square().sum(dims).double()
    rest_C = sum_C / divisor
    moments = Moments(count, origin_C.double() + rest_C, (squares_C - sum_C * rest_C).clamp(min=0))
    return Centred(values, origin_C.double()), moments


def distance(x: Tensor, mean_C: Tensor, _: Tensor | None) -> Centred:
    """Subtract the mean, rounded."""
    origin_C = mean_C.to(accumulation_dtype(x))
    return Centred(x.to(origin_C.dtype) - along_channels(origin_C, x), origin_C.double())


def normalize(centred: Centred, mean_C: Tensor, affine: Affine, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return (x - mean) scale + bias, rounded once to `dtype`; 0 outside the mask."""
    (values, origin_C), (scale_C, bias_C) = centred, affine
    shift_C = bias_C + (origin_C - mean_C) * scale_C
    y = values * along_channels(scale_C.to(values.dtype), values) + along_channels(shift_C.to(values.dtype), values)
    return (y if mask is None else torch.where(mask, y, 0)).to(dtype)


def gradient_sums(dy: Tensor, x: Tensor, mean_C: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per channel, float64: sum dy, and sum dy (x - mean), both over the mask."""
    dims = reduced_dims(x)
    dtype = accumulation_dtype(x)
    origin_C = mean_C.to(dtype)
    dy, distance = dy.to(dtype), x.to(dtype) - along_channels(origin_C, x)
    if mask is not None:
        dy, distance = torch.where(mask, dy, 0), torch.where(mask, distance, 0)
    sum_C, dot_C = dy.sum(dims).double(), (dy * distance).sum(dims).double()
    return sum_C, dot_C + (origin_C.double() - mean_C) * sum_C


def input_gradient(dy: Tensor, x: Tensor, mean_C: Tensor, factors: Factors, mask: Tensor | None) -> Tensor:
    """Return a dy + b (x - mean) + c with factors (a, b, c) per channel, rounded once to the dtype of x; 0 outside the mask."""
    dtype = accumulation_dtype(x)
    origin_C = mean_C.to(dtype)
    a_C, b_C, c_C = factors
    shift_C = c_C + b_C * (origin_C.double() - mean_C)
    distance = x.to(dtype) - along_channels(origin_C, x)
    dx = dy.to(dtype) * along_channels(a_C.to(dtype), x) + (
        distance * along_channels(b_C.to(dtype), x) + along_channels(shift_C.to(dtype), x)
    )
    return (dx if mask is None else torch.where(mask, dx, 0)).to(x.dtype)
