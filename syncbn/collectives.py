"""The one caller of `torch.distributed`: which group, how many ranks, and the reductions over them.

Owns: resolving a process group, the sum over ranks (plain, and differentiable any number of times), watching it, gathering small tensors,
leaving texts for each other, and making sub-groups. Does not own: what is in a vector (`moments.py`) or what is done with the sum.

Every function that communicates must be called by every rank of the group, in the same order, with vectors of the same length.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from syncbn.errors import GroupError, OptionError
from syncbn.shared_memory.rooms import Room, enter_room

_OPS = torch.ops._c10d_functional  # noqa: SLF001  the functional collectives have no public name

ProcessGroup = Any
"""A `torch.distributed.ProcessGroup`; None stands for the default group of all ranks."""


@final
@dataclass(frozen=True, eq=False)
class WatchedGroup:
    """A process group whose sums pass through a function: put in a layer's `process_group` for a while, it watches that layer's reductions.

    The layer's forward and backward do not change, and a layer that is not watched pays one isinstance per reduction.
    """

    group: ProcessGroup | None
    """The group as asked for, possibly watched itself."""
    reduce: Callable[[Tensor, ProcessGroup], Tensor]
    """Called in place of `sum_over_ranks`, with the vector and the resolved group inside; ends in `sum_over_ranks` itself."""


def resolve(process_group: ProcessGroup | None) -> ProcessGroup | None:
    """The group to reduce over, or None where there is nobody to reduce with.

    Args:
        process_group: the group asked for; None is the default group.
    Returns:
        A group of at least two ranks, or None: no process group initialised, or a group of one.
    Raises:
        GroupError: this process is not a member of the group.
    """
    if isinstance(process_group, WatchedGroup):
        inner = resolve(process_group.group)
        return None if inner is None else replace(process_group, group=inner)
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if process_group is None else process_group
    size = dist.get_world_size(group)
    if size < 1:
        raise GroupError(
            f"process_group {process_group!r} does not contain this process (rank {dist.get_rank()} of the default group): "
            "expected a group that it belongs to; give each rank the sub-group that torch.distributed.new_group returned for it"
        )
    return None if size == 1 else group


def _unwatched(group: ProcessGroup) -> ProcessGroup:
    while isinstance(group, WatchedGroup):
        group = group.group
    return group


def group_size(group: ProcessGroup | None) -> int:
    """Number of ranks in a resolved group; 1 for None."""
    return 1 if group is None else int(dist.get_world_size(_unwatched(group)))


def rank_in(group: ProcessGroup | None) -> int:
    """This process's number within a resolved group; 0 for None."""
    return 0 if group is None else int(dist.get_rank(_unwatched(group)))


def sum_over_ranks(vector: Tensor, group: ProcessGroup | None) -> Tensor:
    """Elementwise sum of every rank's vector, in a new tensor; the vector itself for a group of one.

    Can be traced by torch.compile without a break. On CUDA it waits on the stream only, never on the host.

    Collectives: one all_reduce(SUM) of `vector`, none when group is None.
    """
    return start_sum_over_ranks(vector, group)()


def start_sum_over_ranks(vector: Tensor, group: ProcessGroup | None) -> Callable[[], Tensor]:
    """Begin `sum_over_ranks`, and return what waits for the sum and returns it. Until then the vector must not be changed.

    Ranks of one host add up in memory that they share, where they can (`syncbn.shared_memory`).

    Collectives: as `sum_over_ranks`; every rank must wait too, in the same order. The first of a group on the CPU has two gathers more.
    """
    if group is not None and not isinstance(group, WatchedGroup) and not torch.compiler.is_compiling():
        return _start(vector, group)
    summed = vector
    if isinstance(group, WatchedGroup):
        summed = group.reduce(vector, group.group)
    elif group is not None and vector.device.type == "cpu":
        # Opaque to the compiler, so that a rank that runs compiled and one that does not meet in the same place.
        summed = torch.ops.syncbn.sum_over_ranks(vector, group.group_name)
    elif group is not None:
        summed = _OPS.wait_tensor(_OPS.all_reduce(vector, "sum", group.group_name))
    return lambda: summed


def _start(vector: Tensor, group: ProcessGroup) -> Callable[[], Tensor]:
    room = _room_of(group) if vector.device.type == "cpu" else None
    if room is not None and room.takes(vector):
        there = weakref.ref(group)  # the room is kept by its group, and must not keep it
        return room.start(vector, lambda: _sum_in_order(vector, there())).sum
    begun = _OPS.all_reduce(vector, "sum", group.group_name)
    return functools.partial(_OPS.wait_tensor, begun)


_ROOMS: weakref.WeakKeyDictionary[Any, Room | None] = weakref.WeakKeyDictionary()


def _room_of(group: ProcessGroup) -> Room | None:
    """Where the ranks of a group share memory; None where they do not. Collectives: those of `enter_room`, once per group."""
    if group not in _ROOMS:
        is_real = dist.get_backend_config(group).partition("cpu:")[2].startswith("gloo")
        _ROOMS[group] = enter_room(rank_in(group), group_size(group), lambda row: gather_over_ranks(row, group)) if is_real else None
    return _ROOMS[group]


def _sum_in_order(vector: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of every rank's vector, added in the order of ranks. Collectives: one all_gather of `vector`."""
    summed: Tensor
    summed, *others = gather_over_ranks(vector, group)
    for other in others:
        summed += other
    return summed


def _sum_over_ranks_of(vector: Tensor, group_name: str) -> Tensor:
    """`sum_over_ranks` inside a compiled graph."""
    return _start(vector, dist.distributed_c10d._resolve_process_group(group_name))()  # type: ignore[arg-type, attr-defined]  # noqa: SLF001  no public way


_LIBRARY: Any = torch.library.Library("syncbn", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("sum_over_ranks(Tensor vector, str group_name) -> Tensor")
_LIBRARY.impl("sum_over_ranks", _sum_over_ranks_of, "CPU")
_LIBRARY.impl("sum_over_ranks", lambda vector, _: torch.empty_like(vector), "Meta")


class _SumOverRanks(torch.autograd.Function):
    """`sum_over_ranks` with its gradient, the sum of the gradients: out_r = sum_q in_q, so d(sum_r L_r) / d in_q = sum_r dL_r / d out_r."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return sum_over_ranks(vector.contiguous(), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return differentiable_sum_over_ranks(grads[0], ctx.group), None


def differentiable_sum_over_ranks(vector: Tensor, group: ProcessGroup | None) -> Tensor:
    """`sum_over_ranks` as an operation of autograd, differentiable any number of times.

    Collectives: one all_reduce(SUM) here and one in each backward, none when group is None. Every rank must run the backward too.
    """
    if group is None:
        return vector
    result: Tensor = _SumOverRanks.apply(vector, group)  # type: ignore[no-untyped-call]
    return result


def gather_over_ranks(vector: Tensor, group: ProcessGroup | None) -> Tensor:
    """Every rank's vector, stacked along a new first dimension in rank order.

    Collectives: one all_gather of `vector`, none when group is None.
    """
    if group is None:
        return vector.unsqueeze(0)
    parts = [torch.empty_like(vector) for _ in range(group_size(group))]
    dist.all_gather(parts, vector.contiguous(), group=_unwatched(group))
    return torch.stack(parts)


_BLOCKS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


@final
class Board:
    """A place where the ranks of a group leave short texts for each other, under a number; nobody waits for anybody.

    It is the key-value store that the group was made with. Blocks of use follow each other: `open` begins one, on every rank alike.

    Raises:
        RuntimeError: of torch, from every method that asks the store, when the process that serves it has ended.
    """

    def __init__(self, group: ProcessGroup) -> None:
        group = _unwatched(group)
        # Private, and the only way to the store of a group; torch's own debugging tools use it.
        self._store = dist.distributed_c10d._get_process_group_store(group)  # noqa: SLF001
        self._group = group
        self._rank = dist.get_rank()
        self._block = 0
        self.ranks: list[int] = dist.get_process_group_ranks(group)
        """The group's members, by their number in the default group."""
        self.key = id(group)

    def open(self) -> None:
        """Begin a block: what was posted in earlier ones is not seen in it."""
        self._block = _BLOCKS[self._group] = _BLOCKS.get(self._group, 0) + 1

    def post(self, number: int, text: str) -> None:
        """Leave a text, in place of what this rank has left there."""
        self._store.set(self._name(number, self._rank), text)

    def read(self, number: int) -> dict[int, str]:
        """What there is by now, by rank."""
        names = {rank: self._name(number, rank) for rank in self.ranks}
        return {rank: self._store.get(name).decode() for rank, name in names.items() if self._store.check([name])}

    def clear(self, number: int) -> None:
        """Take away this rank's text. Only when everybody has read it."""
        self._store.delete_key(self._name(number, self._rank))

    def _name(self, number: int, rank: int) -> str:
        return f"syncbn/board/{self._block}/{number}/{rank}"


def norm_groups(size: int, prefer_node_local: bool = True) -> ProcessGroup | None:
    """Cut the ranks into groups of `size` and return the one of this process, for `process_group` of a SyncBatchNorm.

    Args:
        size: ranks per group; must divide the number of ranks.
        prefer_node_local: put ranks of the same host into the same group as far as possible, so that the reduction stays inside a node.
            False cuts consecutive ranks.
    Returns:
        The group that contains this process, or None where no process group is initialised and size is 1.
    Raises:
        OptionError: `size` does not divide the number of ranks.

    Collectives: one gather of host names, then one new_group per group. Every rank of the default group must call.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if size < 1 or world % size:
        divisors = [d for d in range(1, world + 1) if world % d == 0]
        raise OptionError(f"size {size} does not divide the {world} ranks: expected one of {divisors}; choose one of these")
    if not (dist.is_available() and dist.is_initialized()):
        return None
    ranks = _ranks_by_host(world) if prefer_node_local else list(range(world))
    mine = None
    for start in range(0, world, size):
        members = sorted(ranks[start : start + size])
        group = dist.new_group(members)
        if dist.get_rank() in members:
            mine = group
    return mine


def _ranks_by_host(world: int) -> list[int]:
    """All ranks, those of one host next to each other; hosts in the order of their lowest rank."""
    import socket

    hosts: list[Any] = [None] * world
    dist.all_gather_object(hosts, socket.gethostname())
    first = {host: hosts.index(host) for host in hosts}
    return sorted(range(world), key=lambda r: (first[hosts[r]], r))


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """The model inside a DistributedDataParallel wrapper, or the module itself.

    The wrapper's forward may broadcast buffers, which hangs when ranks run different numbers of batches.
    """
    inner = getattr(module, "module", None)
    is_wrapped = type(module).__name__ == "DistributedDataParallel" and isinstance(inner, torch.nn.Module)
    return inner if is_wrapped and inner is not None else module
