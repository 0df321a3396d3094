"""The four inner loops for eager CPU, on ATen's fused kernels where these are exact.

Owns: speed on CPU without a loss of accuracy. `torch.native_batch_norm_backward(dy, x, mean)` is one fused pass for sum dy and
sum dy (x - mean), but adds up in float32 within a plane (contiguous) or over all rows (channels_last): 1e-4 off at 10^6 values, 3e-2 at
10^7. Here planes and rows are folded into additional channels first, so that float32 adds at most a few hundred terms in a row and
float64 the rest.

Legend: N batch, C channels, S flattened space, R rows (N times S) of a channels-last layout; statistics are float64 (C,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncbn.loops import plain
from syncbn.moments import Moments
from syncbn.shapes import Affine, Centred, Factors, accumulation_dtype, along_channels, reduced_dims, values_per_channel

_PLANE = 1024  # values that one float32 accumulation of the contiguous kernel may span (it keeps 16 or more partial sums)
_ROWS = 256  # rows that the channels-last kernel may add up one after the other, give or take a factor of 2
_WIDTH = 4096  # channels, real and folded, whose partial sums stay in the nearest cache
_SAMPLES = 64  # about how many values per channel the shift is the mean of
_SMALL = 4.0  # |b mean| / |a| up to which b x may cancel against b mean in the input gradient a dy + b (x - mean) + c
_FAR = 16.0  # (shift - mean)^2 / variance beyond which the shift is taken anew: it costs that factor in accuracy


def centre(x: Tensor, mask: Tensor | None) -> tuple[Centred, Moments]:
    """Shift every channel by a cheap estimate of its mean, and take the moments about the shift in one fused pass.

        t = x - K        mean = K + sum t / n        M2 = sum t^2 - (sum t)^2 / n

    K is the mean over a few samples. Where it turns out to be far from the mean, t is shifted once more: a decision on
    values, which on the CPU costs no synchronization.
    Accuracy: relative error of M2 about 16 * 2^-24 at worst, whatever the mean (tests/syncbn/test_loops.py).
    """
    if mask is not None:
        return plain.centre(x, mask)
    n = values_per_channel(x)
    origin_C = _sample_mean(x)
    values = _minus(x, origin_C)
    sum_C, squares_C = _dots(values, values, None)
    origin_C = origin_C.double()
    if bool((sum_C * sum_C > (_FAR / (1 + _FAR) * n) * squares_C).any()):
        step_C = (sum_C / n).to(values.dtype)
        values.sub_(along_channels(step_C, x))
        origin_C = origin_C + step_C
        sum_C, squares_C = _dots(values, values, None)
    offset_C = sum_C / n
    count = torch.full((), n, dtype=torch.float64)
    return Centred(values, origin_C), Moments(count, origin_C + offset_C, torch.addcmul(squares_C, sum_C, offset_C, value=-1).clamp_(min=0))


def distance(x: Tensor, mean_C: Tensor, _: Tensor | None) -> Centred:
    """Subtract the mean, rounded: one pass."""
    origin_C = mean_C.to(accumulation_dtype(x))
    return Centred(_minus(x, origin_C), origin_C.double())


def normalize(centred: Centred, mean_C: Tensor, affine: Affine, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return (x - mean) scale + bias, in the memory of `centred`, rounded once to `dtype`; 0 outside the mask."""
    (values, origin_C), (scale_C, bias_C) = centred, affine
    y = _scale_and_shift_(values, scale_C, torch.addcmul(bias_C, origin_C - mean_C, scale_C))
    return (y if mask is None else y.masked_fill_(~mask, 0)).to(dtype)


def gradient_sums(dy: Tensor, x: Tensor, mean_C: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per channel, float64: sum dy, and sum dy (x - mean), both over the mask."""
    if mask is not None:
        return plain.gradient_sums(dy, x, mean_C, mask)
    dtype = accumulation_dtype(x)
    origin_C = mean_C.to(dtype)
    sum_C, dot_C = _dots(dy.to(dtype), x.to(dtype), origin_C)
    return sum_C, torch.addcmul(dot_C, origin_C - mean_C, sum_C)


def input_gradient(dy: Tensor, x: Tensor, mean_C: Tensor, factors: Factors, mask: Tensor | None) -> Tensor:
    """Return a dy + b (x - mean) + c with factors (a, b, c) per channel, rounded once to the dtype of x; 0 outside the mask."""
    a_C, b_C, c_C = factors
    dtype = accumulation_dtype(x)
    if x.dtype == dtype and bool(((b_C * mean_C).abs() <= _SMALL * a_C.abs()).all()):
        # One fused pass for b x + (c - b mean). It cancels, but what it loses is small against a dy.
        ones_C = torch.ones_like(mean_C, dtype=dtype)
        dx = torch.native_batch_norm(x, b_C.to(dtype), c_C.to(dtype), mean_C.to(dtype), ones_C, False, 0.0, 0.0)[0]
    else:
        origin_C = mean_C.to(dtype)
        dx = _scale_and_shift_(_minus(x, origin_C), b_C, torch.addcmul(c_C, origin_C - mean_C, b_C))
    dx.addcmul_(dy.to(dtype), along_channels(a_C.to(dtype), x))
    return (dx if mask is None else dx.masked_fill_(~mask, 0)).to(x.dtype)


def _sample_mean(x: Tensor) -> Tensor:
    """Mean over some values spread over batch and space, in the accumulation dtype."""
    left = _SAMPLES
    spread = [slice(None)] * x.dim()
    for dim in reduced_dims(x):
        wanted = max(min(left, x.shape[dim]) if dim == 0 else round(left ** (1 / (x.dim() - dim))), 1)
        step = max(x.shape[dim] // wanted, 1)
        spread[dim] = slice(step // 2, None, step)
        left = max(left // wanted, 1)
    return x[tuple(spread)].to(accumulation_dtype(x)).mean(reduced_dims(x))


def _minus(x: Tensor, origin_C: Tensor) -> Tensor:
    """Compute x - origin in the accumulation dtype, always a new and dense tensor."""
    return (
        torch.sub(x, along_channels(origin_C, x)) if x.dtype == origin_C.dtype else x.to(origin_C.dtype).sub_(along_channels(origin_C, x))
    )


def _scale_and_shift_(values: Tensor, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    """Compute values * scale + shift in place: one pass where channels lie innermost, two (faster there) where space does."""
    scale = along_channels(scale_C.to(values.dtype), values)
    shift = along_channels(shift_C.to(values.dtype), values)
    if values.dim() > 2 and values.is_contiguous():
        return values.mul_(scale).add_(shift)
    return torch.addcmul(shift, values, scale, out=values)


def _dots(a: Tensor, b: Tensor, origin_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per channel, float64: sum a, and sum a (b - origin), an origin of None being 0."""
    rows_b = _rows(b)
    rows_a = None if rows_b is None else _rows(a if a.stride() == b.stride() else torch.empty_like(b).copy_(a))
    if rows_a is not None and rows_b is not None:
        return _dots_of_rows(rows_a, rows_b, origin_C)
    return _dots_of_planes(a.contiguous(), b.contiguous(), origin_C)


def _rows(x: Tensor) -> Tensor | None:
    """View (R, C) of a batch whose channels lie next to each other in memory; None where they do not."""
    rows = x.movedim(1, -1)
    has_space = x.numel() > x.shape[0] * x.shape[1]
    return rows.reshape(-1, x.shape[1]) if rows.is_contiguous() and not (has_space and x.is_contiguous()) else None


def _dots_of_rows(a_RC: Tensor, b_RC: Tensor, origin_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_dots` for channels-last rows, slab by slab: within a slab, neighbouring rows are folded into channels."""
    R, C = b_RC.shape
    if b_RC.dtype == torch.float64:
        return _fused_dots(_folded(a_RC, 1), _folded(b_RC, 1), origin_C)
    slabs, start = [], 0
    while start < R:
        folds, rows = _slab(R - start, C)
        stop = start + rows * folds
        origin = origin_C if origin_C is None or folds == 1 else origin_C.repeat(folds)
        sums, dots = _fused_dots(_folded(a_RC[start:stop], folds), _folded(b_RC[start:stop], folds), origin)
        slabs.append((sums, dots) if folds == 1 else (sums.view(folds, C).sum(0), dots.view(folds, C).sum(0)))
        start = stop
    return slabs[0] if len(slabs) == 1 else (torch.stack([s for s, _ in slabs]).sum(0), torch.stack([d for _, d in slabs]).sum(0))


def _slab(left: int, C: int) -> tuple[int, int]:
    """Into how many channels to fold each channel, and how many folded rows to add up, of the rows left: all of them if they fit."""
    most = min(max(_WIDTH // C, 1), max(left // _ROWS, 1))
    folds = next((folds for folds in range(most, most // 2, -1) if left % folds == 0), most)
    rows = left // folds
    return folds, rows if rows <= 2 * _ROWS else _ROWS


def _folded(x_RC: Tensor, folds: int) -> Tensor:
    """Rows (R, C) as (1, folds * C, R / folds, 1) in channels-last layout, without a copy."""
    return x_RC.view(-1, folds * x_RC.shape[1]).t()[None, :, :, None]


def _dots_of_planes(a: Tensor, b: Tensor, origin_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_dots` for contiguous planes: a large plane is cut into equal parts that count as channels."""
    N, C = b.shape[:2]
    S = b.numel() // (N * C)
    parts = 1 if b.dtype == torch.float64 else _parts(S)
    if parts == 1:
        return _fused_dots(a.view(N, C, S, 1), b.view(N, C, S, 1), origin_C)
    if parts > S // 8:  # no fitting divisor: rare enough for the slow way
        return plain.gradient_sums(
            a.double(), b.double(), torch.zeros(C, dtype=torch.float64) if origin_C is None else origin_C.double(), None
        )
    origin = None if origin_C is None else origin_C[None, :, None].expand(N, C, parts).reshape(-1)
    sums, dots = _fused_dots(a.view(1, N * C * parts, -1, 1), b.view(1, N * C * parts, -1, 1), origin)
    return sums.view(N, C, parts).sum((0, 2)), dots.view(N, C, parts).sum((0, 2))


def _parts(S: int) -> int:
    """The least divisor of S that leaves parts of at most _PLANE values."""
    return next(parts for parts in range(-(-S // _PLANE), S + 1) if S % parts == 0) if S > _PLANE else 1


def _fused_dots(a: Tensor, b: Tensor, origin_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """ATen's fused reduction: with 1 for the inverse deviation, the weight's gradient is sum a (b - origin) and the bias's is sum a."""
    ones = torch.ones(b.shape[1], dtype=b.dtype)
    origin = torch.zeros_like(ones) if origin_C is None else origin_C
    _, dot_C, sum_C = torch.ops.aten.native_batch_norm_backward(a, b, ones, None, None, origin, ones, True, 0.0, [False, True, True])
    return sum_C.double(), dot_C.double()
