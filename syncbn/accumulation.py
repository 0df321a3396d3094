"""Running statistics that move once per optimizer step, however many micro-batches its gradients are accumulated over.

Owns: collecting the moments of every call in a block, and the one update at its end. Does not own the update's formula (`running.py`).

How it works. During each forward the layer has copies of its buffers and a momentum of 1: what it would have entered into them is then the
statistics of this micro-batch, without another pass over the data. A layer that synchronizes reports the global moments as they come off
the wire. So the layers compute what they always do, and nothing more is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup, WatchedGroup, sum_over_ranks, unwrap
from syncbn.errors import InputError
from syncbn.family import Layer, batch_of, tracking_layers
from syncbn.kernels import loops_for
from syncbn.moments import Moments, pack, unpack
from syncbn.norms.ghost import GhostBatchNorm
from syncbn.recomputation import is_recomputation
from syncbn.running import averaging_factor, update_
from syncbn.shapes import aligned_mask, values_per_channel

_MARK = "_accumulates_statistics"
_STATE = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def accumulated_statistics(module: nn.Module) -> Iterator[None]:
    """Within the block running statistics stay as they are; at its end they move once, by the merged moments of all calls in it.

        n = sum_k n_k        mean = sum_k n_k mean_k / n        M2 = sum_k (M2_k + n_k mean_k^2) - n mean^2        (k: calls in the block)

    Wrap it around the micro-batches of one optimizer step. Each micro-batch is still normalized by its own (synchronized) statistics, so
    outputs and gradients are those without the block. num_batches_tracked grows by 1. A layer called several times enters all its calls,
    a ghost_bn all its virtual batches.
    A layer that is not called in training mode is left alone. Evaluation inside the block sees the statistics from before it.

    Args:
        module: the model, or a DistributedDataParallel around it; synchronized and local layers, torch's BatchNorm1d/2d/3d included.
            Torch's layers inside a model that torch.compile has traced before do not run the hooks this uses, and move with each
            micro-batch as ever.
    Raises:
        InputError: a layer is a torch.nn.SyncBatchNorm, which does not say how many values it has seen, or is in such a block already.
            An exception that leaves the block leaves all running statistics as they were before it.

    Collectives: none of its own.

    >>> layer = nn.BatchNorm1d(1, momentum=1.0)
    >>> with accumulated_statistics(layer):
    ...     for batch in (torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0], [7.0]])):
    ...         _ = layer(batch)
    >>> layer.running_mean.item(), round(layer.running_var.item(), 4), int(layer.num_batches_tracked)
    (4.0, 8.6667, 1)
    """
    layers = tracking_layers(unwrap(module))
    _refuse(layers)
    accumulators = [_Accumulator(layer) for layer in layers.values()]
    with ExitStack() as stack:
        for accumulator in accumulators:
            stack.enter_context(accumulator.attached())
        yield
    for accumulator in accumulators:
        accumulator.write()


def _refuse(layers: dict[str, Layer]) -> None:
    for name, layer in layers.items():
        if isinstance(layer, nn.SyncBatchNorm):
            raise InputError(
                f"layer {name!r} is a torch.nn.SyncBatchNorm, which keeps the number of values over all ranks to itself: expected a "
                "syncbn.SyncBatchNorm or a local layer; call syncbn.convert_sync_batchnorm first"
            )
        if _MARK in layer.__dict__:
            raise InputError(
                f"layer {name!r} is in a block of accumulated_statistics already: expected one block per step; leave that one first"
            )


@final
class _Accumulator:
    """One layer in one block: the sum of the packed moments of its calls."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.total: Tensor | None = None
        self.is_global = False  # whether the present call has reported what came off the wire
        self.kept: tuple[dict[str, Any], float | None] | None = None  # buffers and momentum during a call

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks around the layer's forward, and a watch on its process group if it has one."""
        layer = self.layer
        handles = [
            layer.register_forward_pre_hook(self.before),
            layer.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        ]
        is_watched = hasattr(layer, "process_group")
        group = getattr(layer, "process_group", None)
        if is_watched:
            layer.__dict__["process_group"] = WatchedGroup(group, self.watch)
        layer.__dict__[_MARK] = True
        try:
            yield
        finally:
            self.restore()
            del layer.__dict__[_MARK]
            if is_watched:
                layer.__dict__["process_group"] = group
            for handle in handles:
                handle.remove()

    def before(self, layer: nn.Module, _: tuple[Any, ...]) -> None:
        """Lend the layer copies of its buffers."""
        if not layer.training:
            return
        self.kept, self.is_global = ({key: layer._buffers[key] for key in _STATE}, self.layer.momentum), False  # noqa: SLF001
        layer._buffers.update({key: buffer.clone() for key, buffer in self.kept[0].items() if buffer is not None})  # noqa: SLF001
        self.layer.momentum = 1.0

    def after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor | None) -> None:
        """Take the statistics out of the copies; y is None if the forward has failed."""
        lent_mean_C, lent_var_C = self.layer.running_mean, self.layer.running_var
        is_lent = self.restore()
        is_entered = self.is_global or is_recomputation()
        if is_lent and y is not None and not is_entered and lent_mean_C is not None and lent_var_C is not None:
            self.add(pack(self.moments(*batch_of(args, kwargs), lent_mean_C, lent_var_C)))

    def moments(self, x: Tensor, mask: Tensor | None, mean_C: Tensor, var_C: Tensor) -> Moments:
        """The moments of a local call, from what it has entered into its buffers: nothing where there were fewer than two values.

        Of virtual batches the buffers have the last one alone: there, one pass over the input.
        """
        if isinstance(self.layer, GhostBatchNorm):
            return loops_for(x).centre(x.detach(), None)[1]
        if mask is None:
            n = torch.full((), values_per_channel(x), dtype=torch.float64, device=mean_C.device)
        else:
            n = aligned_mask(mask, x).sum(dtype=torch.float64)
        n = torch.where(n > 1, n, 0)
        divisor = n - 1 if getattr(self.layer, "unbiased_running_var", True) else n
        zeros_C = torch.zeros_like(mean_C, dtype=torch.float64)
        M2_C = torch.where(n > 1, var_C.double() * divisor, zeros_C)
        return Moments(n, torch.where(n > 1, mean_C.double(), zeros_C), M2_C)

    def watch(self, vector: Tensor, group: ProcessGroup) -> Tensor:
        """The sum over ranks; that of a forward (2C + 1 numbers, the backward's are 2C) is entered."""
        summed = sum_over_ranks(vector, group)
        if vector.numel() % 2 and self.kept is not None and not is_recomputation():
            self.is_global = True
            self.add(summed)
        return summed

    def add(self, vector: Tensor) -> None:
        """Enter the packed moments of one call."""
        self.total = vector if self.total is None else self.total + vector

    def restore(self) -> bool:
        """Give the layer its own buffers back; whether it had lent ones."""
        if self.kept is None:
            return False
        buffers, self.layer.momentum = self.kept
        self.layer._buffers.update(buffers)  # noqa: SLF001
        self.kept = None
        return True

    def write(self) -> None:
        """Move the layer's own buffers, once."""
        layer = self.layer
        if self.total is None or layer.running_mean is None or layer.running_var is None:
            return
        tracked = layer.num_batches_tracked
        factor = (0.0 if layer.momentum is None else layer.momentum) if tracked is None else averaging_factor(layer.momentum, tracked)
        unbiased = getattr(layer, "unbiased_running_var", True)
        update_(layer.running_mean, layer.running_var, unpack(self.total), factor, unbiased=unbiased)
        if tracked is not None:
            tracked.add_(1)
