"""Recalibration: exact, the same on every rank, the same for any number of ranks, and never waiting in vain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import syncbn
from syncbn import OptionError, RecalibrationError, recalibrate

SIZES = (4, 7, 2, 5, 3, 6)


def model() -> nn.Sequential:
    """Two norms, one of them deep, and a dropout that must keep still."""
    torch.manual_seed(0)
    layers = (nn.Conv1d(2, 3, 3, bias=False), syncbn.SyncBatchNorm(3), nn.ReLU(), nn.Dropout(0.5), nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    return nn.Sequential(*layers).double().train()


def batches() -> list[torch.Tensor]:
    """Batches of uneven sizes."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 2, 6, generator=generator, dtype=torch.float64) * n + n for n in SIZES]


def dealt(rank: int, world_size: int, estimator: str, first: int) -> dict[str, torch.Tensor]:
    """Rank 0 takes the first batches, the others deal the rest out: very uneven, possibly none."""
    mine = batches()[:first] if rank == 0 else batches()[first:][rank - 1 :: max(world_size - 1, 1)]
    net = model()
    report = recalibrate(net, ((x, "label") for x in mine), estimator=estimator)
    assert report.num_samples == sum(SIZES)
    assert report.layers == ("1", "5")
    assert net.training
    assert net[3].training
    return dict(net.state_dict())


@pytest.mark.ranks
@pytest.mark.parametrize("estimator", ["exact", "mean_of_batches"])
def test_any_number_of_ranks_gives_the_same(ranks, estimator) -> None:
    """The same batches, dealt out anyhow over 1, 2, 3 or 5 ranks, some with none, give the same statistics on every rank."""
    (wanted,) = ranks.run(1, dealt, estimator, len(SIZES))
    for world_size, first in ((2, 5), (2, 6), (3, 1), (5, 3)):
        for state in ranks.run(world_size, dealt, estimator, first):
            for name, value in wanted.items():
                torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-12)


def test_exact_is_the_population() -> None:
    """The first layer's statistics are those of all values together: the mean, and the biased variance."""
    net = model()
    held = net[1].running_mean
    recalibrate(net, batches())
    inputs = net[0](torch.cat(batches())).detach()
    torch.testing.assert_close(net[1].running_mean, inputs.mean((0, 2)))
    torch.testing.assert_close(net[1].running_var, inputs.var((0, 2), correction=0))
    assert net[1].running_mean is held
    assert int(net[1].num_batches_tracked) == len(SIZES)


def test_mean_of_batches_is_the_classic_estimate() -> None:
    """Every batch counts the same, with its unbiased variance."""
    net = model()
    recalibrate(net, batches(), estimator="mean_of_batches")
    inputs = [net[0](x).detach() for x in batches()]
    torch.testing.assert_close(net[1].running_mean, torch.stack([x.mean((0, 2)) for x in inputs]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([x.var((0, 2)) for x in inputs]).mean(0))


def test_deep_layers_are_measured_behind_batch_statistics() -> None:
    """A deep layer's statistics are those of its inputs in training, without dropout, whatever the old running statistics were."""
    net, twin = model(), model()
    twin[1].running_mean.fill_(1e6)
    recalibrate(net, batches())
    recalibrate(twin, batches())
    assert torch.equal(net[5].running_var, twin[5].running_var)
    reference = copy.deepcopy(net).train()
    reference[3].eval()
    inputs = torch.cat([reference[:5](x) for x in batches()]).detach()
    torch.testing.assert_close(net[5].running_mean, inputs.mean((0, 2)))


def test_a_layer_used_twice_is_estimated_over_both_uses() -> None:
    """Both inputs of a shared layer count."""
    norm = nn.BatchNorm1d(1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Normalize x and something else."""
            return self.norm(x) + self.norm(3 * x)

    x = torch.randn(8, 1)
    recalibrate(Twice(), [x])
    torch.testing.assert_close(norm.running_var, torch.cat((x, 3 * x)).var(0, correction=0))


def test_unused_layers_are_reported_and_kept() -> None:
    """A layer that saw no input keeps its statistics."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Use one of the two."""
            return self.used(x)

    net = Half()
    report = recalibrate(net, [torch.randn(8, 1)])
    assert (report.layers, report.untouched) == (("used",), ("unused",))
    assert net.unused.running_var.tolist() == [1.0]


def test_num_samples_ends_an_endless_stream() -> None:
    """Feeding stops with the batch that reaches the number."""

    def endless():
        while True:
            yield torch.randn(4, 2, 6, dtype=torch.float64)

    assert recalibrate(model(), endless(), num_samples=10).num_samples == 12


def test_a_stream_shows_how_far_it_has_come() -> None:
    """A generator of unknown length is fed to its end; samples and batches are reported after each, an empty batch not."""
    told = []
    stream = (x for x in (*batches()[:2], torch.zeros(0, 2, 6).double(), batches()[2]))
    report = recalibrate(model(), stream, num_samples=10**9, on_batch=lambda *fed: told.append(fed))
    assert told == [(4, 1), (11, 2), (13, 3)]
    assert (report.num_samples, report.num_batches) == (13, 3)


def shared(rank: int, world_size: int) -> torch.Tensor:
    """A layer used on two inputs, over ranks with different numbers of batches."""
    norm = syncbn.SyncBatchNorm(2, dtype=torch.float64)
    net = nn.Sequential(norm, nn.Tanh(), norm)
    recalibrate(net, batches()[rank::world_size][: 2 if rank else None])
    return norm.running_var


@pytest.mark.ranks
def test_a_layer_used_twice_is_merged_over_ranks(ranks) -> None:
    """Both inputs on every rank count by their size; every rank holds the same bits."""
    (first, *others) = ranks.run(3, shared)
    fed = [x for rank in range(3) for x in batches()[rank::3][: 2 if rank else None]]
    norm = nn.BatchNorm1d(2, dtype=torch.float64)
    values = torch.cat([torch.cat((x, norm(x).detach().tanh())) for x in fed])
    torch.testing.assert_close(first, values.var((0, 2), correction=0), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(first, other) for other in others)


def failing(rank: int, world_size: int) -> tuple[str, float]:
    """One rank's data does not fit the model."""
    net = model()
    good = torch.randn(4, 2, 6).double()
    try:
        recalibrate(net, [good, torch.randn(4, 9, 6).double()] if rank == 1 else [good])
    except RecalibrationError as failure:
        return str(failure), float(net[1].running_var.sum())
    return "nothing", 0.0


@pytest.mark.ranks
def test_one_ranks_failure_is_everyones(ranks) -> None:
    """If feeding fails on one rank, all raise, naming it, and no statistics change."""
    told, own = ranks.run(2, failing)
    assert "feeding failed on rank 1, whose own error says why" in told[0]
    assert "feeding failed on rank 1 with RuntimeError: " in own[0]
    assert told[1] == own[1] == 3.0


def wrapped(rank: int, world_size: int) -> int:
    """A DDP model that broadcasts its buffers, with different numbers of batches."""
    net = nn.parallel.DistributedDataParallel(model(), broadcast_buffers=True)
    return recalibrate(net, batches()[: rank + 1]).num_batches


@pytest.mark.ranks
def test_a_ddp_wrapper_is_looked_through(ranks) -> None:
    """DDP's own broadcasts do not make ranks wait for each other."""
    assert ranks.run(2, wrapped) == [3, 3]


@pytest.mark.parametrize(
    ("options", "text"), [({"estimator": "exakt"}, "did you mean 'exact'"), ({"num_samples": 0}, "num_samples 0 is not positive")]
)
def test_wrong_options_are_refused(options, text) -> None:
    """Unknown estimators and numbers below one are refused before anything is fed."""
    with pytest.raises(OptionError, match=text):
        recalibrate(model(), batches(), **options)


def test_no_data_is_refused() -> None:
    """Nothing fed is an error, and changes nothing."""
    net = model()
    with pytest.raises(RecalibrationError, match="no samples on any of 1 ranks"):
        recalibrate(net, [torch.zeros(0, 2, 6).double()])
    assert net[1].running_var.tolist() == [1.0] * 3
    assert net[1].running_mean is not None
