"""What synchronizing costs, and whether it is worth it: telemetry per layer, off by default.

Owns: watching the reductions of a model's layers, and what is read out of them. Does not own the watch itself (`collectives.py`).
Off, it does not exist: no hook, no attribute. On, everything is taken from the vectors that are exchanged anyway and stays on the device
until it is read. Only a layer that exchanges nothing is measured by a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup, WatchedGroup, group_size, resolve, sum_over_ranks, unwrap
from syncbn.family import Layer, batch_of, synchronizes
from syncbn.kernels import loops_for
from syncbn.moments import pack, unpack, variance
from syncbn.recomputation import is_recomputation
from syncbn.shapes import aligned_mask
from syncbn.stopwatch import Stopwatch

_DRIFTS = 2


@final
@dataclass(frozen=True)
class LayerTelemetry:
    """What one layer has done in the block. Means are over its calls, and over channels with equal weight.

    Invariants: bytes_sent counts what this rank hands to the reductions, not the copies that an algorithm makes of it. A mean over calls is
    None without a call; the last two come with `collect` only, and for layers that synchronize.
    """

    name: str
    num_ranks: int
    num_calls: int  # in training mode; a recomputation under a checkpoint is none
    num_reductions: int  # of forwards and backwards; of n calls usually 2n, and 2n - 1 if the first layer's input needs no gradient
    bytes_sent: int
    time_s: float  # from handing over to having; on the CPU it includes the wait for the slowest rank
    num_values: float | None  # per channel and call, over all ranks (and the mask)
    mean_drift: float | None  # |batch mean - running mean| / sqrt(running variance + eps), before the update
    variance_drift: float | None  # |log((batch variance + eps) / (running variance + eps))|, biased, before the update
    between_to_within: float | None = None  # variance of the ranks' means over the mean of the ranks' variances, both weighted by count
    effective_num_values: float | None = None  # how many independent values the ranks' means vary like, at most num_values


@contextmanager
def telemetry(module: nn.Module) -> Iterator[Telemetry]:
    """Watch every batch normalization layer of a model for the length of the block.

    Args:
        module: the model, or a DistributedDataParallel around it. torch.nn.SyncBatchNorm is left out: it does not tell.
    Yields:
        A `Telemetry`, to be read at any time, also after the block.

    Collectives: none; `Telemetry.collect` has one. Backwards that run after the block, of forwards inside it, are still counted.

    >>> from syncbn import SyncBatchNorm
    >>> model = nn.Sequential(nn.Linear(2, 3), SyncBatchNorm(3))
    >>> with telemetry(model) as records:
    ...     _ = model(torch.randn(4, 2))
    >>> records.read()["1"].bytes_sent  # alone, nothing is sent
    0
    >>> records.read()["1"].num_values
    4.0
    """
    layers = unwrap(module).named_modules()
    watches = {name: _Watch(layer) for name, layer in layers if isinstance(layer, Layer) and not isinstance(layer, nn.SyncBatchNorm)}
    with ExitStack() as stack:
        for watch in watches.values():
            stack.enter_context(watch.attached())
        yield Telemetry(watches)


@final
class Telemetry:
    """The records of one block."""

    def __init__(self, watches: dict[str, _Watch]) -> None:
        self._watches = watches

    def read(self) -> dict[str, LayerTelemetry]:
        """What this rank knows by itself, by layer name. On a GPU this waits for the device. Collectives: none."""
        return {name: watch.record(name) for name, watch in self._watches.items()}

    def collect(self, process_group: ProcessGroup | None = None) -> dict[str, LayerTelemetry]:
        """`read`, with the comparison of ranks: is synchronizing worth it?

            within = sum_r M2_r / n        between = sum_r n_r (mean_r - mean)^2 / n = M2 / n - within        ratio = between / within
            effective_num_values = (R - 1) (within + between) / between

        M2 / n is known from the reductions; the sum of the ranks' own M2_r is not, and is sent here. If all values of a batch were
        independent, the ratio would be about (R - 1) / n. Neighbouring pixels are not, and ranks that see different kinds of data still
        less: a ratio r means that local statistics would put each rank's mean off by about sqrt(r) standard deviations. The effective
        number is the number of independent values that would make the ranks' means vary as they do.

        Args:
            process_group: all ranks that took part. Layers that synchronize in smaller groups are averaged over these.

        Collectives: one all_reduce(SUM) of 2 float64 per layer. Every rank of the group must call, with the same layers.
        """
        group = resolve(process_group)
        shares = [watch.within_shares() for watch in self._watches.values()]
        device = next((share.device for share in shares if share.device.type != "cpu"), torch.device("cpu"))
        summed = sum_over_ranks(torch.stack([share.to(device) for share in shares]), group).tolist() if shares else []
        pairs = zip(self._watches.items(), summed, strict=True)
        return {name: watch.record(name, within / ranks if ranks else None) for (name, watch), (within, ranks) in pairs}


@final
class _Watch:
    """One layer's reductions, in sums on its device."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.stopwatch = Stopwatch()
        self.num_ranks = 1
        self.num_calls = self.num_reductions = self.bytes_sent = 0
        self.values: Tensor | None = None  # ()
        self.squares_2C: Tensor | None = None  # sums over calls of M2_r / n (this rank's part of within) and of M2 / n
        self.drifts: Tensor | None = None  # (2,)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the watch in the layer's process group and a hook before its forward, and take them out again."""
        layer = self.layer
        handle = layer.register_forward_pre_hook(self.measure, with_kwargs=True)
        group = getattr(layer, "process_group", None)
        if synchronizes(layer):
            layer.__dict__["process_group"] = WatchedGroup(group, self.reduce)
        try:
            yield
        finally:
            handle.remove()
            if synchronizes(layer):
                layer.__dict__["process_group"] = group

    def measure(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the moments of a call that will not reduce: one pass over its input."""
        layer = self.layer
        is_reduced = synchronizes(layer) and resolve(layer.__dict__["process_group"]) is not None
        if not layer.training or is_reduced or is_recomputation():
            return
        x, mask = batch_of(args, kwargs)
        with torch.no_grad():
            vector = pack(loops_for(x).centre(x, None if mask is None else aligned_mask(mask, x))[1])
        self.enter(vector, vector)

    def reduce(self, vector: Tensor, group: ProcessGroup) -> Tensor:
        """The sum over ranks, timed. A forward's has 2C + 1 numbers, a backward's 2C."""
        with self.stopwatch.running(vector.device):
            summed = sum_over_ranks(vector, group)
        self.num_ranks = group_size(group)
        self.num_reductions += 1
        self.bytes_sent += vector.numel() * vector.element_size()
        if vector.numel() % 2:
            self.enter(vector.detach(), summed.detach())
        return summed

    def enter(self, local: Tensor, total: Tensor) -> None:
        """Add up what a forward has sent and received: packed moments."""
        self.num_calls += 1
        mine, whole = unpack(local), unpack(total)
        squares_2C = torch.cat((mine.M2, whole.M2)) / whole.n.clamp(min=1)
        self.values = whole.n if self.values is None else self.values + whole.n
        self.squares_2C = squares_2C if self.squares_2C is None else self.squares_2C + squares_2C
        mean_C, var_C = self.layer.running_mean, self.layer.running_var
        if mean_C is None or var_C is None:
            return
        floor_C = var_C.double() + self.layer.eps
        off_C = (whole.mean - mean_C.double()).abs() / floor_C.sqrt()
        changed_C = ((variance(whole, unbiased=False) + self.layer.eps) / floor_C).log().abs()
        drifts = torch.stack((off_C.mean(), changed_C.mean()))
        self.drifts = drifts if self.drifts is None else self.drifts + drifts

    def within_shares(self) -> Tensor:
        """This rank's part of within / (within + between), mean over channels, and 1 / R: over a group they sum to the share and to 1."""
        if self.squares_2C is None or not self.num_reductions:
            return torch.zeros(2, dtype=torch.float64)
        mine_C, whole_C = self.squares_2C.chunk(2)
        varies_C = whole_C > 0
        share = (torch.where(varies_C, mine_C / whole_C, 0.0)).sum() / varies_C.sum().clamp(min=1)
        return torch.stack((share, torch.full_like(share, 1 / self.num_ranks)))

    def record(self, name: str, within: float | None = None) -> LayerTelemetry:
        """Plain values, with the share of within-rank variance if it is known."""
        calls = max(self.num_calls, 1)
        values = None if self.values is None else float(self.values) / calls
        drifts = [None] * _DRIFTS if self.drifts is None else [drift / calls for drift in self.drifts.tolist()]
        between = None if within is None else max(1.0 - within, 0.0)
        return LayerTelemetry(
            name=name,
            num_ranks=self.num_ranks,
            num_calls=self.num_calls,
            num_reductions=self.num_reductions,
            bytes_sent=self.bytes_sent,
            time_s=self.stopwatch.elapsed_s(),
            num_values=values,
            mean_drift=drifts[0],
            variance_drift=drifts[1],
            between_to_within=None if within is None or between is None else between / within if within > 0 else float("inf"),
            effective_num_values=None if values is None or between is None else _effective(values, between, self.num_ranks),
        )


def _effective(values: float, between: float, num_ranks: int) -> float:
    """How many independent values would make `num_ranks` means vary by the share `between` of the variance, at most `values`.

    >>> _effective(1000.0, 0.02, 3)
    100.0
    """
    return values if between * values <= num_ranks - 1 else (num_ranks - 1) / between
