"""Activation checkpointing: a layer that is run again during backward finds the sums of its first pass instead of asking the ranks anew.

Owns: telling a recomputation from a first pass, and keeping what a first pass found for as long as it may be recomputed, not longer.
Does not own the running statistics, which whoever owns them leaves alone while `is_recomputation()`.

How it works. A forward that runs while autograd executes a backward is a recomputation; every variant of checkpointing does so, nested
ones too. Which first pass it repeats is told by what it would send: the same input gives the same local vector. So nothing is counted,
and it does not matter in which order the segments come back, how often, or whether they stop early. A first pass is kept alive by what
keeps its recomputation possible: its node in the graph, or, where grad is off, the `CheckpointFunction` that it runs in.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from syncbn.collectives import ProcessGroup, sum_over_ranks
from syncbn.errors import RecomputationError

_SAME = 1e-4  # relative L1 distance up to which two keys are those of the same call, one of them recomputed in another order


@final
class FirstPass:
    """What one forward found, and the key that it is found again by: both float64 vectors."""

    def __init__(self, key: Tensor, found: Tensor) -> None:
        self.key, self.found = key, found


_FIRST_PASSES: weakref.WeakKeyDictionary[Any, list[weakref.ref[FirstPass]]] = weakref.WeakKeyDictionary()


def is_recomputation() -> bool:
    """Whether this code runs inside a backward, on behalf of a checkpoint. False while torch.compile traces, which recomputes by itself."""
    # Private, and what torch.utils.checkpoint itself asks. There is no public way.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1  # noqa: SLF001


class Call(NamedTuple):
    """A forward of `owner` that is about to run; `checkpoints` are those that it runs in without a graph of its own."""

    owner: Any
    checkpoints: list[Any]

    def sum(self, local: Tensor, group: ProcessGroup, node: Any) -> Tensor:
        """`sum_over_ranks` of a first pass, kept by its node; in a recomputation the sum that the first pass received.

        Args:
            local: (2C + 1,) float64, packed moments.
            group: resolved.
            node: the autograd node of this forward.
        Raises:
            RecomputationError: first passes are kept, and none of them had this input. On other devices than the CPU, where looking
                would stop the host, the result is NaN instead.

        Collectives: one all_reduce(SUM) in a first pass, none in its recomputation. One again where nothing was kept (no gradient
            reaches this call, or the checkpoint is not torch's): a property of the program, so the same on every rank.
        """
        return self.recall(local, lambda: sum_over_ranks(local, group), node)

    def recall(self, key: Tensor, find: Callable[[], Tensor], node: Any) -> Tensor:
        """What `find` finds in a first pass, kept by its node; in a recomputation what the first pass with the same key has found.

        Args:
            key: float64 vector, the same in both up to rounding. Things of different meaning need keys of different lengths.
            find: gives a float64 vector.
            node: the autograd node of this forward.
        Raises:
            RecomputationError: as `sum`.
        """
        if is_recomputation():
            kept = _kept(self.owner, key)
            return _matching(kept, key) if kept else find()
        first_pass = FirstPass(key, find())
        node.first_pass = first_pass
        for checkpoint in self.checkpoints:
            vars(checkpoint).setdefault("_syncbn_first_passes", []).append(first_pass)
        alive = [ref for ref in _FIRST_PASSES.get(self.owner, ()) if ref() is not None]
        _FIRST_PASSES[self.owner] = [*alive, weakref.ref(first_pass)]
        return first_pass.found


def call_of(owner: Any) -> Call | None:
    """The call that begins here, by the layer (or any object) that it is a call of; None for no owner, and while torch.compile traces."""
    if owner is None or torch.compiler.is_compiling():
        return None
    return Call(owner, [] if torch.is_grad_enabled() else _reentrant_checkpoints())


def _reentrant_checkpoints() -> list[Any]:
    """The nodes of all reentrant checkpoints whose first pass is running, found on the stack: nothing else knows of them before it ends."""
    code = CheckpointFunction.forward.__code__
    found, frame = [], inspect.currentframe()
    while frame is not None:
        if frame.f_code is code:
            found.append(frame.f_locals[code.co_varnames[0]])
        frame = frame.f_back
    return found


def _kept(owner: Any, key: Tensor) -> list[FirstPass]:
    passes = (ref() for ref in _FIRST_PASSES.get(owner, ()))
    return [kept for kept in passes if kept is not None and kept.key.shape == key.shape and kept.key.device == key.device]


def _matching(kept: list[FirstPass], key: Tensor) -> Tensor:
    """What the first pass with the nearest key has found: chosen on the device, without a wait for it."""
    finite = torch.nan_to_num(key, nan=0.0, posinf=1e30, neginf=-1e30)
    keys_KV = torch.nan_to_num(torch.stack([each.key for each in kept]), nan=0.0, posinf=1e30, neginf=-1e30)
    distance, nearest = ((keys_KV - finite).abs().sum(1) / finite.abs().sum().clamp(min=1e-300)).min(0, keepdim=True)
    found = torch.stack([each.found for each in kept]).index_select(0, nearest).squeeze(0)
    if key.device.type != "cpu":
        return torch.where(distance <= _SAME, found, torch.nan)
    if not distance.item() <= _SAME:
        raise RecomputationError(
            f"a recomputation in backward has an input that none of the layer's {len(kept)} first passes had: the nearest is at a relative "
            f"distance of {distance.item():.1e}, expected at most {_SAME:.0e}; make the checkpointed function deterministic, "
            "leave preserve_rng_state on, and keep calls to which no gradient reaches out of the checkpoint"
        )
    return found
