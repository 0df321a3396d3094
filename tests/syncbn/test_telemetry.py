"""Telemetry: free when off, right when on, and no reduction more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncbn import LayerTelemetry, SyncBatchNorm, telemetry
from tests.syncbn.reductions import counted_reductions

C = 3


def trace(layer: nn.Module) -> tuple:
    """Everything about a layer that telemetry could leave behind."""
    return sorted(layer.__dict__), layer.__dict__.get("process_group"), len(layer._forward_hooks), len(layer._forward_pre_hooks)


@pytest.mark.parametrize("kind", [SyncBatchNorm, nn.BatchNorm1d])
def test_off_it_does_not_exist(kind) -> None:
    """No hook and no attribute before the block, after it, or after an error in it."""
    layer = kind(C)
    before = trace(layer)
    with telemetry(layer):
        assert trace(layer) != before
        layer(torch.randn(4, C))
    assert trace(layer) == before
    with pytest.raises(ValueError), telemetry(layer):
        layer(torch.randn(1, C))
    assert trace(layer) == before


@pytest.mark.parametrize("kind", [SyncBatchNorm, nn.BatchNorm1d])
def test_alone_drift_and_values_are_known(kind) -> None:
    """Nothing is sent; drift is against the statistics from before the update; evaluation is not counted."""
    layer = kind(C, dtype=torch.float64)
    x = torch.randn(8, C, dtype=torch.float64) * 3 + 2
    with telemetry(nn.Sequential(layer)) as records:
        assert records.read()["0"].num_values is None
        layer(x)
        layer.eval()(x)
    found = records.read()["0"]
    assert (found.num_calls, found.num_reductions, found.bytes_sent, found.num_values) == (1, 0, 0, 8.0)
    floor = 1 + layer.eps
    assert found.mean_drift == pytest.approx(float(x.mean(0).abs().mean()) / math.sqrt(floor))
    assert found.variance_drift == pytest.approx(float(((x.var(0, correction=0) + layer.eps) / floor).log().abs().mean()))
    assert records.collect()["0"].between_to_within is None


def share(rank: int, call: int) -> Tensor:
    """Uneven shares whose means differ by rank."""
    generator = torch.Generator().manual_seed(10 * call + rank)
    return torch.randn(4 + rank, C, 5, generator=generator, dtype=torch.float64) + rank


def watched(rank: int, world_size: int) -> tuple[dict[str, LayerTelemetry], dict[str, LayerTelemetry], list[int], list[int], bool]:
    """Two calls of a used layer beside an unused one: what is read and collected, reductions with and without, and equal bits."""
    results, counts = [], []
    records = None
    for on in (False, True):
        model = nn.ModuleDict({"used": SyncBatchNorm(C, dtype=torch.float64), "unused": SyncBatchNorm(C)})
        x = [share(rank, call).requires_grad_() for call in range(2)]
        with counted_reductions() as reductions:
            if on:
                with telemetry(model) as records:
                    ys = [model["used"](each) for each in x]
            else:
                ys = [model["used"](each) for each in x]
            sum((y * y).sum() for y in ys).backward()
        counts.append(list(reductions))
        results.append([*ys, *(each.grad for each in x), *model["used"].buffers()])
    assert records is not None
    same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with counted_reductions() as collecting:
        collected = records.collect()
    return records.read(), collected, counts[0] + [-1, *counts[1]], list(collecting), same


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 3])
def test_over_ranks_it_counts_right_and_sends_nothing_more(ranks, world_size) -> None:
    """Calls, bytes, values and variances against one process that sees all; the same bits and the same reductions; one more to collect."""
    batches = [[share(rank, call) for rank in range(world_size)] for call in range(2)]
    share_within, values = torch.zeros(C).double(), 0
    whole_share = torch.zeros(C).double()
    for parts in batches:
        rows = [part.movedim(1, -1).reshape(-1, C) for part in parts]
        whole = torch.cat(rows)
        values += whole.shape[0]
        share_within += sum((r - r.mean(0)).square().sum(0) for r in rows) / whole.shape[0]
        whole_share += whole.var(0, correction=0)
    within = float((share_within / whole_share).mean())
    for read, collected, reductions, collecting, same in ranks.run(world_size, watched):
        assert same
        middle = reductions.index(-1)
        assert reductions[:middle] == reductions[middle + 1 :] == [2 * C + 1] * 2 + [2 * C] * 2
        assert collecting == [4]
        used = read["used"]
        assert (used.num_calls, used.num_reductions, used.bytes_sent, used.num_ranks) == (2, 4, 8 * 2 * (4 * C + 1), world_size)
        assert 0 < used.time_s < 10
        assert used.num_values == values / 2
        assert used.between_to_within is None
        assert collected["used"].between_to_within == pytest.approx((1 - within) / within)
        assert collected["used"].effective_num_values == pytest.approx((world_size - 1) / (1 - within))
        assert collected["unused"].num_calls == 0
        assert collected["unused"].between_to_within is None


def alike(rank: int, world_size: int) -> LayerTelemetry:
    """Many calls with independent values, of the same distribution on every rank."""
    layer = SyncBatchNorm(64)
    generator = torch.Generator().manual_seed(rank)
    with telemetry(layer) as records:
        for _ in range(8):
            layer(torch.randn(50, 64, generator=generator))
    return records.collect()[""]


@pytest.mark.ranks
def test_independent_values_are_all_effective(ranks) -> None:
    """The ratio is near (R - 1) / n and the effective number near n."""
    for found in ranks.run(2, alike):
        assert found.num_values == 100
        assert 80 <= found.effective_num_values <= 100
        assert 0.008 < found.between_to_within < 0.0126


def recomputed(rank: int, world_size: int) -> tuple[int, int]:
    """Calls and reductions under a checkpoint, one forward and backward."""
    layer = SyncBatchNorm(C, dtype=torch.float64)
    with telemetry(layer) as records:
        checkpoint(layer, share(rank, 0).requires_grad_(), use_reentrant=False).square().sum().backward()
    found = records.read()[""]
    return found.num_calls, found.num_reductions


@pytest.mark.ranks
@pytest.mark.parametrize(("world_size", "wanted"), [(1, (1, 0)), (2, (1, 2))])
def test_a_recomputation_is_no_call(ranks, world_size, wanted) -> None:
    """It sends nothing, and its statistics are known already."""
    assert ranks.run(world_size, recomputed) == [wanted] * world_size
