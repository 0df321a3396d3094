"""The four inner loops for eager CUDA, on ATen's fused kernels: no temporary, no wait for the device.

Owns: speed on CUDA. The kernels accumulate with Welford's method in float32 (float64 for float64); the mean is rounded to that
dtype, which costs up to 2e-5 of the variance at mean/std = 1e4.

The same operators exist on the CPU, where the tests run them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncbn.loops import plain
from syncbn.moments import Moments
from syncbn.shapes import Affine, Centred, Factors, accumulation_dtype, values_per_channel


def centre(x: Tensor, mask: Tensor | None) -> tuple[Centred, Moments]:
    """Moments by Welford's method; x itself stays as it is (origin 0)."""
    if mask is not None:
        return plain.centre(x, mask)
    mean_C, variance_C = torch.batch_norm_update_stats(x, None, None, 0.0)
    count = torch.full((), values_per_channel(x), dtype=torch.float64, device=x.device)
    moments = Moments(count, mean_C.double(), variance_C.double() * count)
    return Centred(x, torch.zeros_like(moments.mean)), moments


def distance(x: Tensor, mean_C: Tensor, mask: Tensor | None) -> Centred:
    """X itself, as the kernel that normalizes subtracts the mean; less the mean where the plain formulas normalize."""
    return Centred(x, torch.zeros_like(mean_C)) if mask is None else plain.distance(x, mean_C, mask)


def normalize(centred: Centred, mean_C: Tensor, affine: Affine, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return (x - mean) scale + bias, rounded once to `dtype`; 0 outside the mask."""
    if mask is not None:
        return plain.normalize(centred, mean_C, affine, mask, dtype)
    x, (scale_C, bias_C), wide = centred.values, affine, accumulation_dtype(centred.values)
    rounded_C = mean_C.to(wide)
    shift_C = torch.addcmul(bias_C, rounded_C - mean_C, scale_C).to(wide)
    ones_C = torch.ones_like(rounded_C)
    y: Tensor = torch.native_batch_norm(x, scale_C.to(wide), shift_C, rounded_C, ones_C, False, 0.0, 0.0)[0]
    return y.to(dtype)


def gradient_sums(dy: Tensor, x: Tensor, mean_C: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per channel, float64: sum dy, and sum dy (x - mean), both over the mask."""
    if mask is not None:
        return plain.gradient_sums(dy, x, mean_C, mask)
    origin_C = mean_C.to(accumulation_dtype(x))
    ones_C = torch.ones_like(origin_C)
    dy = dy.to(x.dtype)
    _, dot_C, sum_C = torch.ops.aten.native_batch_norm_backward(dy, x, ones_C, None, None, origin_C, ones_C, True, 0.0, [False, True, True])
    sum_C = sum_C.double()
    return sum_C, torch.addcmul(dot_C.double(), origin_C - mean_C, sum_C)


def input_gradient(dy: Tensor, x: Tensor, mean_C: Tensor, factors: Factors, mask: Tensor | None) -> Tensor:
    """Return a dy + b (x - mean) + c with factors (a, b, c) per channel, rounded once to the dtype of x; 0 outside the mask."""
    return plain.input_gradient(dy, x, mean_C, factors, mask)
