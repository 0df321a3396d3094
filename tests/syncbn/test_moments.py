"""Moments: merging, packing, and what the subtraction costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbn.errors import EmptyBatchError
from syncbn.moments import Moments, merge, pack, unpack, variance


def moments_of(rows: torch.Tensor) -> Moments:
    """The definition, for rows (n, C); zeros for none."""
    if len(rows) == 0:
        zeros = torch.zeros(rows.shape[1], dtype=torch.float64)
        return Moments(torch.tensor(0.0, dtype=torch.float64), zeros, zeros)
    mean = rows.mean(0)
    return Moments(torch.tensor(float(len(rows)), dtype=torch.float64), mean, (rows - mean).square().sum(0))


def stack(parts: list[Moments]) -> Moments:
    """Moments of ranks side by side."""
    return Moments(*(torch.stack(fields) for fields in zip(*parts, strict=True)))


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), C=st.integers(1, 4), seed=st.integers(0, 99))
def test_merge_is_the_moments_of_the_union(sizes, C, seed) -> None:
    """However rows are dealt out over ranks, empty ones included, merging gives the moments of all rows."""
    rows = torch.randn(sum(sizes), C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 2
    merged = merge(stack([moments_of(part) for part in rows.split(sizes)]))
    for actual, wanted in zip(merged, moments_of(rows), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_merging_nothing_is_refused() -> None:
    """If every rank is empty, the error says so; one sample on one rank is enough."""
    nothing = moments_of(torch.zeros(0, 2, dtype=torch.float64))
    with pytest.raises(EmptyBatchError, match="all 3 batches to merge are empty"):
        merge(stack([nothing] * 3))
    assert merge(stack([nothing, moments_of(torch.ones(1, 2, dtype=torch.float64))])).n == 1


@pytest.mark.parametrize(("mean", "std", "bound"), [(0, 1, 1e-15), (100, 1, 1e-11), (100, 0.1, 1e-9), (1000, 0.1, 1e-7), (0, 1e-6, 1e-15)])
def test_the_subtraction_costs_the_square_of_mean_over_std(mean, std, bound) -> None:
    """Subtracting n mean^2 in float64 loses about (mean/std)^2 * 2^-53 of M2: 1e-8 where mean/std is 10,000."""
    rows = torch.randn(8 * 4096, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * std + mean
    exact = moments_of(rows)
    merged = merge(stack([moments_of(part) for part in rows.chunk(8)]))
    assert float(((merged.M2 - exact.M2) / exact.M2).abs().max()) < bound


def test_an_empty_batch_packs_to_zeros() -> None:
    """So that a rank without samples can take part as it is."""
    assert not pack(moments_of(torch.zeros(0, 3, dtype=torch.float64))).any()


def test_counts_past_two_to_the_24_are_exact() -> None:
    """Counts travel in float64: one more than 2^24 is not lost, as it would be in float32."""
    one = Moments(torch.tensor(2.0**24, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    other = moments_of(torch.ones(1, 1, dtype=torch.float64))
    assert unpack(pack(one) + pack(other)).n == 2**24 + 1


def test_variance_is_biased_or_unbiased() -> None:
    """Both are those of torch."""
    rows = torch.randn(9, 2, dtype=torch.float64)
    for correction, unbiased in ((0, False), (1, True)):
        torch.testing.assert_close(variance(moments_of(rows), unbiased=unbiased), rows.var(0, correction=correction))
