"""The inner loops, all three kinds, against float64: every shape, layout and size that takes a path of its own."""

from __future__ import annotations

import pytest
import torch

from syncbn import kernels
from syncbn.loops import cpu, cuda, plain
from syncbn.moments import variance
from syncbn.shapes import along_channels

LOOPS = [cpu, plain, cuda]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [
    (6, 5),
    (700, 3),
    (6, 5, 7),
    (6, 5, 4, 3),
    (3, 5, 2, 3, 4),
    (1, 5, 4, 4),
    (9000, 3, 2),
    (2, 3, 130, 129),
    (1, 2, 8209),
    (3, 1, 9, 9),
]


def permuted(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A batch whose channels lie innermost in memory."""
    return torch.randn(shape[0], *shape[2:], shape[1], dtype=torch.float64).mul(2).add(5).to(dtype).movedim(-1, 1)


def relative(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest error relative to the largest entry."""
    return float((actual.double() - wanted).abs().max() / wanted.abs().max())


# ATen's operators mix bfloat16 and float32 on CUDA only.
@pytest.mark.parametrize(
    ("loops", "dtype"),
    [(loops, dtype) for loops in LOOPS for dtype in DTYPES if (loops, dtype) != (cuda, torch.bfloat16)],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else value.__name__,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("innermost", ["space", "channels"])
def test_each_loop_is_its_definition(loops, shape, innermost, dtype) -> None:
    """Moments, normalized values, gradient sums and input gradients are those of float64 arithmetic."""
    torch.manual_seed(0)
    x, dy = permuted(shape, dtype), permuted(shape, dtype)
    if innermost == "space":
        x, dy = x.contiguous(), dy.contiguous()
    wide, dwide, dims = x.double(), dy.double(), (0, *range(2, x.dim()))
    # The plain loops add up in float32, and ATen's channels-last kernel does so one by one.
    bound = 1e-13 if dtype == torch.float64 else {cpu: 1e-6, plain: 1e-5, cuda: 2e-5}[loops]
    rounding = bound if dtype != torch.bfloat16 else 2**-8

    centred, moments = loops.centre(x, None)
    mean, var = wide.mean(dims), wide.var(dims, correction=0)
    assert relative(moments.mean, mean) < bound
    assert relative(variance(moments, unbiased=False), var) < 3 * bound

    a, b, c = (torch.randn(shape[1], dtype=torch.float64) for _ in range(3))
    distance = wide - along_channels(mean, x)
    y = loops.normalize(centred, mean, (a, b), None, dtype)
    assert relative(y, distance * along_channels(a, x) + along_channels(b, x)) < rounding
    assert y.dtype == dtype

    sums, dots = loops.gradient_sums(dy, x, mean, None)
    assert relative(sums, dwide.sum(dims)) < bound
    assert relative(dots, (dwide * distance).sum(dims)) < bound * max(
        1.0, float(dwide.norm() * distance.norm() / (dwide * distance).sum(dims).abs().max())
    )

    dx = loops.input_gradient(dy, x, mean, (a, b, c), None)
    assert relative(dx, dwide * along_channels(a, x) + distance * along_channels(b, x) + along_channels(c, x)) < rounding
    assert dx.dtype == dtype


@pytest.mark.parametrize("shape", [(1, 2, 1 << 20), (1 << 18, 2, 4)], ids=str)
@pytest.mark.parametrize("innermost", ["space", "channels"])
def test_a_million_values_lose_nothing(shape, innermost) -> None:
    """Sums of 10^6 float32 values keep their accuracy in both layouts, where ATen's own kernel is off by up to 4e-3."""
    x = permuted(shape, torch.float32)
    x = x.contiguous() if innermost == "space" else x
    moments = cpu.centre(x, None)[1]
    wanted = x.double().var((0, 2), correction=0)
    assert relative(variance(moments, unbiased=False), wanted) < 3e-7


@pytest.mark.parametrize("is_masked", [False, True])
def test_more_values_than_float32_can_count(is_masked) -> None:
    """An odd number of values above 2^24, all of which count; mean and variance keep their accuracy."""
    n = 1023 * 16401
    x = torch.full((1, 1, n), 3.0)
    x[..., ::2] = 1.0
    mask = torch.ones(1, 1, n, dtype=torch.bool) if is_masked else None
    moments = cpu.centre(x, mask)[1]
    assert int(moments.n) == n > 2**24
    torch.testing.assert_close(moments.mean, x.double().mean((0, 2)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance(moments, unbiased=False), x.double().var((0, 2), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("innermost", ["space", "channels"])
def test_a_misleading_sample_is_found_out(innermost) -> None:
    """If the few values that the shift is taken from are far from all others, the shift is taken anew."""
    x = (
        torch.randn(4096, 3, 8, 8)
        .mul(1e-2)
        .contiguous(memory_format=torch.channels_last if innermost == "channels" else torch.contiguous_format)
    )
    x[::64, :, 4, 4] = 1e4
    moments = cpu.centre(x, None)[1]
    assert relative(variance(moments, unbiased=False), x.double().var((0, 2, 3), correction=0)) < 1e-6
    x[:, 0] += 1e4
    moments = cpu.centre(x, None)[1]
    assert relative(moments.mean, x.double().mean((0, 2, 3))) < 1e-9


@pytest.mark.parametrize("loops", [cpu, plain], ids=["cpu", "plain"])
@pytest.mark.parametrize("value", [0.0, 3.3, 1e10])
def test_a_constant_channel_has_variance_zero(loops, value) -> None:
    """Constant channels give their value and exactly no variance."""
    moments = loops.centre(torch.full((7, 2, 5), value), None)[1]
    torch.testing.assert_close(moments.mean, torch.full((7, 2, 5), value).double().mean((0, 2)))
    assert not moments.M2.any()


def test_nan_stays_in_its_channel() -> None:
    """A NaN spoils its channel and no other."""
    x = torch.randn(4, 3, 5)
    x[1, 1, 2] = torch.nan
    moments = cpu.centre(x, None)[1]
    assert moments.mean.isnan().tolist() == [False, True, False]
    assert moments.M2.isnan().tolist() == [False, True, False]


def test_empty_batches_take_the_plain_loops() -> None:
    """Fused kernels divide by the number of values; the plain formulas do not mind there being none."""
    empty = torch.zeros(0, 3, 4)
    loops = kernels.loops_for(empty)
    assert loops is plain
    assert kernels.loops_for(torch.zeros(1, 3, 4)) is cpu
    centred, moments = loops.centre(empty, None)
    assert all(not field.any() for field in moments)
    ones = torch.ones(3, dtype=torch.float64)
    assert loops.normalize(centred, ones, (ones, ones), None, torch.float32).shape == (0, 3, 4)
    assert all(not total.any() for total in loops.gradient_sums(empty, empty, ones, None))
    assert loops.input_gradient(empty, empty, ones, (ones, ones, ones), None).shape == (0, 3, 4)
