"""Whatever the batch looks like and however it is cut over ranks: one process in float64 over the whole of it is right.

One pool of processes serves all examples, since the number of ranks stays the same from example to example.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from syncbn import SyncBatchNorm, inner_loops
from syncbn.moments import Moments, merge, pack, unpack
from tests.support.ranks import RankPool
from tests.syncbn.oracle import STATISTICS_TOLERANCES, TOLERANCES, error, expected

DTYPES = tuple(TOLERANCES)
LAYOUTS = ("contiguous", "channels_last", "permuted", "sliced", "expanded")


@dataclass(frozen=True)
class Example:
    """A batch, its cut over ranks, its layout on each, and a layer."""

    sizes: tuple[int, ...]
    C: int
    spatial: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    gradient_layout: str
    valid: float  # the part of positions that the mask lets through; 2.0: no mask
    padding_rank: int | None  # a rank whose mask lets nothing through
    loops: str
    options: dict[str, object] = field(hash=False)
    seed: int

    def share(self, rank: int) -> slice:
        """The rows of the whole batch that are a rank's."""
        return slice(sum(self.sizes[:rank]), sum(self.sizes[: rank + 1]))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Whole input, whole output gradient, whole mask (N, *spatial); what is expanded somewhere has equal values there."""
        generator = torch.Generator().manual_seed(2 * self.seed + step)
        shape = (sum(self.sizes), self.C, *self.spatial)
        x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        x = x * (torch.rand(self.C, generator=generator) * 4 + 0.2).view(-1, *[1] * len(self.spatial)) + 1.5
        mask = torch.rand((shape[0], *self.spatial), generator=generator) < self.valid
        if self.padding_rank is not None and self.valid < 1:
            mask[self.share(self.padding_rank)] = False
        x, dy = (same_along(t, layout) for t, layout in ((x, self.layout), (dy, self.gradient_layout)))
        return x.to(self.dtype), dy.to(self.dtype), mask


def same_along(x: Tensor, layout: str) -> Tensor:
    """For an expanded layout: the same value along the last dimension of space, or in all channels."""
    if layout != "expanded":
        return x
    return (x[..., :1] if x.dim() > 2 else x[:, :1]).expand(x.shape)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if layout == "channels_last":
        return x.clone(memory_format=formats.get(x.dim(), torch.contiguous_format))
    if layout == "permuted":
        return x.movedim(1, 0).contiguous().movedim(0, 1)
    if layout == "sliced":
        wide = torch.full((x.shape[0] + 1, *x.shape[1:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
        wide[1:, ..., 1::2] = x
        return wide[1:, ..., 1::2]
    if layout == "expanded":
        return (x[..., :1] if x.dim() > 2 else x[:, :1]).contiguous().expand(x.shape)
    return x.contiguous()


@st.composite
def examples(draw: st.DrawFn, world_size: int, dtypes: tuple[torch.dtype, ...]) -> Example:
    """Everything that may vary, with at least two values per channel over all ranks."""
    spatial = draw(st.sampled_from([(), (1,), (3,), (2, 3), (1, 1), (2, 1, 2)]))
    example = Example(
        sizes=tuple(draw(st.lists(st.sampled_from([0, 1, 2, 5]), min_size=world_size, max_size=world_size))),
        C=draw(st.sampled_from([1, 2, 3, 8])),
        spatial=spatial,
        dtype=draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(LAYOUTS)),
        gradient_layout=draw(st.sampled_from(LAYOUTS)),
        valid=draw(st.sampled_from([2.0, 2.0, 0.7])),
        padding_rank=draw(st.none() | st.integers(0, world_size - 1)),
        loops=draw(st.sampled_from(["aten", "compiled"])),
        options={
            "momentum": draw(st.sampled_from([0.1, None, 1.0])),
            "affine": draw(st.booleans()),
            "unbiased_running_var": draw(st.booleans()),
            "eps": draw(st.sampled_from([1e-5, 0.1])),
        },
        seed=draw(st.integers(0, 99)),
    )
    for step in range(2):
        assume(example.batch(step)[2].sum() > 1)
    return example


def errors_on(rank: int, world_size: int, example: Example, synchronized: bool = True) -> dict[str, float]:
    """Two training steps: every result's error as a multiple of its bound."""
    wide = torch.float64 if example.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(example.seed)
    layer = SyncBatchNorm(example.C, dtype=wide, **example.options)
    weight, bias = torch.ones(example.C).double(), torch.zeros(example.C).double()
    if layer.affine:
        weight, bias = (torch.rand(example.C, generator=generator).double() + 0.5 for _ in range(2))
        layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    if not synchronized:
        layer.process_group = next(group for group in map(dist.new_group, [[0], [1]]) if dist.get_rank(group) == 0)
    bounds = {"y": TOLERANCES[example.dtype][0], "dx": TOLERANCES[example.dtype][0]}
    running = torch.zeros(example.C).double(), torch.ones(example.C).double()
    found: dict[str, float] = {}
    for step in range(2):
        x, dy, mask = example.batch(step)
        share = example.share(rank)
        wanted = expected(x, dy, weight, bias, mask, eps=layer.eps)
        mine = laid_out(x[share], example.layout).requires_grad_()
        layer.zero_grad()
        with inner_loops(example.loops):
            y = layer(mine, mask[share]) if example.valid < 1 else layer(mine)
        y.backward(laid_out(dy[share], example.gradient_layout))
        # dx is a difference of terms as large as weight dy / std. Few values can make it nearly nothing.
        terms = float((weight / (wanted.var + layer.eps).sqrt()).max() * dy.abs().max())
        errors = {"y": error(y.detach(), wanted.y[share], scale=1.0), "dx": error(mine.grad, wanted.dx[share], scale=terms)}
        if layer.affine:
            valid_dy = dy[share].double() * mask[share].unsqueeze(1)  # parameter gradients are this rank's contribution
            xhat, dims = (wanted.y[share] - along(bias, x)) / along(weight, x), (0, *range(2, x.dim()))
            size = max(float(valid_dy.abs().sum()), 1.0)
            errors["dweight"] = error(layer.weight.grad, (valid_dy * xhat).sum(dims), scale=size)
            errors["dbias"] = error(layer.bias.grad, valid_dy.sum(dims), scale=size)
        factor = 1 / (step + 1) if layer.momentum is None else layer.momentum
        bessel = wanted.n / (wanted.n - 1) if layer.unbiased_running_var else 1.0
        running = (1 - factor) * running[0] + factor * wanted.mean, (1 - factor) * running[1] + factor * wanted.var * bessel
        errors |= {"running_mean": error(layer.running_mean, running[0]), "running_var": error(layer.running_var, running[1])}
        for name, value in errors.items():
            bound = bounds.get(name, STATISTICS_TOLERANCES[example.dtype])
            found[name] = max(found.get(name, 0.0), value / bound)
    assert int(layer.num_batches_tracked) == 2
    return found


def along(vector_C: Tensor, x: Tensor) -> Tensor:
    """A vector shaped to broadcast over x."""
    return vector_C.view(1, -1, *[1] * (x.dim() - 2))


@pytest.fixture(scope="module")
def pool():
    """Ranks of this file alone: others would change the number of ranks in between, and each change forms a new group."""
    with RankPool() as own:
        yield own


# Alone the layer is torch's own, bit for bit, whose half types lose more (7e-4 of dbias in bfloat16): test_layer_alone.py.
@pytest.mark.ranks
@pytest.mark.parametrize(("world_size", "dtypes"), [(1, DTYPES[:2]), (2, DTYPES), (4, DTYPES)])
def test_any_batch_is_normalized_as_one_process_would(pool, world_size, dtypes) -> None:
    """Outputs, running statistics and all gradients, for any shapes, cuts, dtypes, layouts, masks and options."""

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(examples(world_size, dtypes))
    def holds(example: Example) -> None:
        for rank, errors in enumerate(pool.run(world_size, errors_on, example)):
            worst = max(errors, key=errors.__getitem__)
            assert errors[worst] <= 1, f"rank {rank}: {worst} is {errors[worst]:.2g} times its bound off"

    holds()


@pytest.mark.ranks
def test_local_statistics_would_be_found_out(pool) -> None:
    """The test above can fail: without synchronization everything is off on both ranks, with it nothing."""
    options = {"momentum": 0.1, "affine": True, "unbiased_running_var": True, "eps": 1e-5}
    example = Example((2, 5), 3, (2, 3), torch.float64, "contiguous", "contiguous", 2.0, None, "compiled", options, 0)
    for synchronized in (True, False):
        for errors in pool.run(2, errors_on, example, synchronized):
            assert {name for name, value in errors.items() if value > 1} == (set() if synchronized else set(errors) - {"dbias"})


def moments_of(rows: Tensor) -> Moments:
    """The definition, for rows (n, C) in float64; zeros for none."""
    n = torch.tensor(float(len(rows))).double()
    mean = rows.mean(0) if len(rows) else torch.zeros(rows.shape[1]).double()
    return Moments(n, mean, (rows - mean).square().sum(0))


def merged(parts: list[Moments]) -> Moments:
    """Of ranks side by side."""
    return merge(Moments(*(torch.stack(fields) for fields in zip(*parts, strict=True))))


@st.composite
def dealt_rows(draw: st.DrawFn) -> list[Tensor]:
    """Rows of three channels on one to six ranks, some with none."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any))
    row = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3)
    return [torch.tensor(draw(st.lists(row, min_size=n, max_size=n)), dtype=torch.float64).view(-1, 3) for n in sizes]


def assert_same(found: Moments, wanted: Moments) -> None:
    """Up to the rounding of the subtraction: that of the sum of squares, not of M2."""
    scale = float((wanted.M2 + wanted.n * wanted.mean.square()).max())
    assert found.n == wanted.n
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.M2, wanted.M2, rtol=1e-12, atol=1e-14 * scale)


pure = settings(max_examples=50, deadline=None)


@pure
@given(dealt_rows(), st.randoms())
def test_the_order_of_ranks_does_not_matter(parts, random) -> None:
    """Any order of the ranks gives the same moments."""
    moments = [moments_of(part) for part in parts]
    assert_same(merged(random.sample(moments, len(moments))), merged(moments))


@pure
@given(dealt_rows(), st.data())
def test_merging_in_groups_is_merging_at_once(parts, data) -> None:
    """A node first, then the nodes: (a + b) + c is a + (b + c), and both are a + b + c."""
    moments = [moments_of(part) for part in parts]
    cut = data.draw(st.integers(0, len(moments)))
    groups = [unpack(torch.stack([pack(m) for m in group]).sum(0)) for group in (moments[:cut], moments[cut:]) if group]
    assert_same(merged(groups), merged(moments))


@pure
@given(dealt_rows(), st.data())
def test_the_cut_does_not_matter(parts, data) -> None:
    """However the same rows are cut anew, the moments are those of all rows."""
    rows = torch.cat(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    assert_same(merged([moments_of(part) for part in rows.tensor_split(cuts)]), moments_of(rows))


@pure
@given(dealt_rows(), st.floats(-100, 100), st.sampled_from([-4.0, 0.5, 8.0]))
def test_moments_follow_a_change_of_unit(parts, shift, scale) -> None:
    """Scaled and shifted values have the scaled and shifted mean, and the scaled sum of squares."""
    n, mean, M2 = merged([moments_of(part) for part in parts])
    changed = merged([moments_of(part * scale + shift) for part in parts])
    size = float((changed.M2 + n * changed.mean.square()).max() + n * shift**2 + M2.max())
    torch.testing.assert_close(changed.mean, mean * scale + shift, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(changed.M2, M2 * scale**2, rtol=1e-10, atol=1e-13 * size)
