"""Running statistics estimated anew over a data set ("precise batch norm"), by all ranks together.

Owns: feeding the model, collecting each layer's moments, the one merge over ranks, and writing the buffers. Does not own the moments
(`moments.py`) or the data.

How it works. Each rank feeds its own batches, as many as it has. While feeding, every layer normalizes by the statistics of the batch at
hand on this rank, as in training, and communicates nothing: ranks may have different numbers of batches and cannot wait for each other.
(By the running statistics it would be wrong: deeper layers would be measured behind layers normalized by what is about to be
replaced.) Everything else is in eval mode: no dropout. At the end one all-reduce merges all moments in float64.

So the unit is the batch: the same batches give the same result however they are dealt out over however many ranks, up to the rounding of
float64 sums. For the first layer, and for any layer with nothing normalized before it, not even the cut into batches matters.
Use batches as large as in training: statistics of deeper layers are taken behind batch statistics of this size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup, group_size, rank_in, resolve, sum_over_ranks, unwrap
from syncbn.errors import OptionError, RecalibrationError
from syncbn.family import Layer, batch_of, tracking_layers
from syncbn.kernels import loops_for
from syncbn.moments import Moments, pack, unpack, variance
from syncbn.shapes import aligned_mask
from syncbn.spelling import nearest

_STATE = ("running_mean", "running_var", "num_batches_tracked")


class Estimator(NamedTuple):
    """How a batch enters: as a vector (2C + 1,) float64 that adds up over batches and ranks, from whose sum mean and variance are found.

    The vector's first entry is positive, and the sum's 0 where nothing was seen.
    """

    vector: Callable[[Moments], Tensor]
    statistics: Callable[[Tensor], tuple[Tensor, Tensor]]


def _population(vector: Tensor) -> tuple[Tensor, Tensor]:
    moments = unpack(vector)
    return moments.mean, variance(moments, unbiased=False)


def _one_batch(moments: Moments) -> Tensor:
    return torch.cat((torch.ones_like(moments.n).unsqueeze(0), moments.mean, variance(moments, unbiased=True)))


def _average(vector: Tensor) -> tuple[Tensor, Tensor]:
    mean_C, var_C = (vector[1:] / vector[0]).chunk(2)
    return mean_C, var_C


_ESTIMATORS = {"exact": Estimator(pack, _population), "mean_of_batches": Estimator(_one_batch, _average)}


@dataclass(frozen=True)
class Recalibration:
    """What was done, over all ranks. `untouched` layers saw no input and keep their statistics."""

    num_samples: int
    num_batches: int
    layers: tuple[str, ...]
    untouched: tuple[str, ...]


def recalibrate(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    process_group: ProcessGroup | None = None,
    estimator: str = "exact",
    num_samples: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Recalibration:
    """Replace the running statistics of every batch normalization layer by those of a data set.

        exact:            mean = sum_b n_b mean_b / n        var = (sum_b M2_b + sum_b n_b (mean_b - mean)^2) / n
        mean_of_batches:  mean = average of mean_b           var = average of M2_b / (n_b - 1)

    `exact` is the law of total variance over all values of the data set, which is the population: its variance is biased (divided by n),
    and batches count by their size. `mean_of_batches` is the classic estimate of what training saw; every batch counts the same.

    Args:
        module: the model, on every rank with the same parameters. A DistributedDataParallel wrapper is looked through. Layers without
            running statistics are left alone; a layer used several times in one forward is estimated over all its uses.
        batches: this rank's share: tensors, or tuples or lists whose first element is the input. May be a stream, may be empty.
        process_group: ranks that feed shares of one data set; None for all.
        estimator: "exact" or "mean_of_batches".
        num_samples: stop after about so many samples over all ranks. Each rank stops with the batch that reaches its even share; with the
            end of its batches in any case, whose number need not be known.
        on_batch: shows progress: called after each batch with the samples and the batches that this rank has fed.
    Returns:
        What was fed and which layers changed; the same on every rank, as are the statistics. num_batches_tracked becomes the number
        of batches.
    Raises:
        OptionError: unknown estimator, num_samples below 1.
        RecalibrationError: feeding failed on some rank, or no rank fed a sample. Raised on every rank; nothing is changed on any.

    Collectives: one all_reduce(SUM) of 2C+1 float64 per layer and R+2 more, after the last batch. Every rank of the group must call,
        also with no batches. A rank whose feeding fails takes part before it raises, so that no other waits in vain.
    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm".

    >>> layer = nn.BatchNorm1d(1)
    >>> recalibrate(layer, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0], [7.0]])]).num_samples
    4
    >>> layer.running_mean.item(), layer.running_var.item()
    (4.0, 6.5)
    """
    if estimator not in _ESTIMATORS:
        raise OptionError(
            f"estimator {estimator!r} is unknown: expected one of {', '.join(sorted(_ESTIMATORS))}{nearest(estimator, _ESTIMATORS)}"
        )
    if num_samples is not None and num_samples < 1:
        raise OptionError(f"num_samples {num_samples} is not positive: expected at least 1, or None for all; pass a larger number")
    group = resolve(process_group)
    model = unwrap(module)
    seen = _Seen(tracking_layers(model), _ESTIMATORS[estimator])
    failure: Exception | None = None
    try:
        with torch.no_grad(), _measuring(model, seen):
            _feed(model, batches, _share(num_samples, group), seen, on_batch)
    except Exception as error:  # noqa: BLE001  the other ranks must hear of it before it is raised
        failure = error
    total = _summed(seen, failure, group)
    return _written(seen, total, failure, group_size(group))


@dataclass
class _Seen:
    """What this rank has fed and measured: one vector per layer that has run."""

    layers: dict[str, Layer]
    estimator: Estimator
    vectors: dict[str, Tensor] = field(default_factory=dict)
    num_samples: int = 0
    num_batches: int = 0

    def add(self, name: str, x: Tensor, mask: Tensor | None) -> None:
        """Enter one input of one layer."""
        _, moments = loops_for(x).centre(x, None if mask is None else aligned_mask(mask, x))
        vector = self.estimator.vector(moments)
        self.vectors[name] = self.vectors[name] + vector if name in self.vectors else vector


def _share(num_samples: int | None, group: ProcessGroup | None) -> float:
    """How many samples this rank feeds: an even share, the first ranks taking one more of what is left over."""
    if num_samples is None:
        return math.inf
    each, left = divmod(num_samples, group_size(group))
    return each + (rank_in(group) < left)


def _feed(model: nn.Module, batches: Iterable[Any], share: float, seen: _Seen, on_batch: Callable[[int, int], None] | None) -> None:
    iterator = iter(batches)
    while seen.num_samples < share:
        batch = next(iterator, None)
        if batch is None:
            return
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if x.shape[0] > 0:
            model(x)
            seen.num_samples += x.shape[0]
            seen.num_batches += 1
            if on_batch is not None:
                on_batch(seen.num_samples, seen.num_batches)


@contextmanager
def _measuring(model: nn.Module, seen: _Seen) -> Iterator[None]:
    """Everything in eval mode, every layer without its running statistics: it takes the batch's then, alone. Its hook reports them."""

    def measured_by(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.add(name, *batch_of(args, kwargs))

        return hook

    modes = [(part, part.training) for part in model.modules()]
    buffers = [(layer, {key: getattr(layer, key) for key in _STATE}) for layer in seen.layers.values()]
    handles = [layer.register_forward_pre_hook(measured_by(name), with_kwargs=True) for name, layer in seen.layers.items()]
    try:
        model.eval()
        for layer, state in buffers:
            layer.__dict__["_buffers"].update(dict.fromkeys(state))
        yield
    finally:
        for layer, state in buffers:
            layer.__dict__["_buffers"].update(state)
        for handle in handles:
            handle.remove()
        for part, training in modes:
            part.training = training


def _summed(seen: _Seen, failure: Exception | None, group: ProcessGroup | None) -> Tensor:
    """One vector over all ranks: failures by rank, samples, batches, then each layer's vector."""
    device = next((layer.running_mean.device for layer in seen.layers.values() if layer.running_mean is not None), torch.device("cpu"))
    head = torch.zeros(group_size(group) + 2, dtype=torch.float64, device=device)
    head[rank_in(group)] = float(failure is not None)
    head[-2], head[-1] = seen.num_samples, seen.num_batches
    body = [
        seen.vectors.get(name, torch.zeros(2 * layer.num_features + 1, dtype=torch.float64)).to(device)
        for name, layer in seen.layers.items()
    ]
    return sum_over_ranks(torch.cat((head, *body)), group)


def _written(seen: _Seen, total: Tensor, failure: Exception | None, num_ranks: int) -> Recalibration:
    """Write every layer's buffers, in place, unless some rank failed or nothing was fed."""
    failed = [rank for rank, flag in enumerate(total[:num_ranks].tolist()) if flag]
    if failed:
        reason = f" with {type(failure).__name__}: {failure}" if failure is not None else ", whose own error says why"
        raise RecalibrationError(
            f"feeding failed on rank{'s' * (len(failed) > 1)} {', '.join(map(str, failed))}{reason}: "
            "expected every batch to pass through the model; no statistics were changed; mend the data and call again"
        ) from failure
    num_samples, num_batches = (int(value) for value in total[num_ranks : num_ranks + 2].tolist())
    if num_samples == 0:
        raise RecalibrationError(
            f"no samples on any of {num_ranks} ranks: expected at least one batch on one of them; no statistics were changed; feed data"
        )
    untouched, start = [], num_ranks + 2
    for name, layer in seen.layers.items():
        vector = total[start : start + 2 * layer.num_features + 1]
        start += vector.numel()
        if vector[0].item() == 0:
            untouched.append(name)
        else:
            _overwrite(layer, *seen.estimator.statistics(vector), num_batches)
    return Recalibration(num_samples, num_batches, tuple(name for name in seen.layers if name not in untouched), tuple(untouched))


def _overwrite(layer: Layer, mean_C: Tensor, var_C: Tensor, num_batches: int) -> None:
    values = (mean_C, var_C, torch.tensor(num_batches))
    for key, value in zip(_STATE, values, strict=True):
        buffer = getattr(layer, key)
        if buffer is not None:
            buffer.copy_(value)
