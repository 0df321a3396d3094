"""The ranks of a gang as one group: how it is made, speaks and parts. With worker/meeting.py the worker's only file with torch.distributed.

Owns the process group, its device and its network interface. Knows nothing of models, data or jobs.

Every collective must be called by every rank of the group, in the same order; a rank that does not is noticed after
`WorkerSettings.collective_timeout_s`, one that died at once.
"""

import gc
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from inspect import signature
from typing import Any, Protocol, cast

import torch

# Loaded with the rest, and not when DDP and the optimizers ask for it: by then somebody waits.
import torch._dynamo
import torch.distributed as dist

# Imported before any group exists: it keeps `group.WORLD` of the moment of its import in default arguments, for ever. Left to DDP, which
# imports it lazily, it would keep the group and its sockets alive, and peers would not notice that this rank has left.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch._C._distributed_c10d import Store
from torch.nn.parallel import DistributedDataParallel

from worker.errors import GangStartError, PeerLostError
from worker.meeting import CONNECT_TIMEOUT_S, MeetingPlace, await_all
from worker.settings import WorkerSettings, read_settings

# DDP's own synchronization of buffers before every forward; torch 2.13 renamed it.
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


class Pending(Protocol):
    """A collective under way."""

    def wait(self) -> Any:
        """Wait until the tensor holds the result."""


class Ranks:
    """One rank's membership in the group: who it is, and the collectives it may take part in."""

    def __init__(self, rank: int, world_size: int, device: torch.device, place: Store | None = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self._place = place  # held while the group lives, which cannot do so itself

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace the tensor on every rank by the sum over all ranks. Collectives: one all_reduce(SUM)."""
        dist.all_reduce(tensor)
        return tensor

    def start_sum(self, tensor: Tensor) -> Pending:
        """Begin a `sum`; the tensor must not be touched before `wait`. Collectives: one all_reduce(SUM)."""
        return cast("Pending", dist.all_reduce(tensor, async_op=True))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in the order of ranks; shapes must be equal. Collectives: one all_gather."""
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return parts

    def adopt_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors on every rank by those of rank 0. Collectives: one broadcast per tensor."""
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

    def broadcast(self, content: bytes | None, source: int) -> bytes:
        """Return the bytes that rank `source` gives; the others give None. Collectives: two broadcasts, over the CPU's network."""
        length = torch.tensor([len(content or b"")])
        dist.broadcast(length, src=source)
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(buffer, src=source)
        return buffer.numpy().tobytes()

    def confirm(self) -> None:
        """Return when every reduction begun so far is known to have succeeded, so that what depends on it may be changed for good.

        On the CPU a reduction that was waited for has succeeded. NCCL reports nothing to the host until it is asked.

        Raises:
            PeerLostError: one has not.
        """
        if self.device.type != "cuda" or dist.group.WORLD is None:
            return
        torch.cuda.current_stream(self.device).synchronize()
        backend = cast("Any", dist.group.WORLD)._get_backend(self.device)  # noqa: SLF001 - there is no public way to the backend
        error = backend.get_error()
        if int(error) != 0:
            raise PeerLostError(f"a collective failed because another rank went away or did not answer: NCCL reports {error}")

    def interrupt(self) -> None:
        """Have every collective under way fail, from another thread than the one that waits in it."""
        for group in list(dist.distributed_c10d._world.pg_map):  # noqa: SLF001 - there is no public list of the groups, parts included
            group.abort()

    def replicate(self, model: nn.Module) -> "Replica":
        """Wrap a model so that gradients are averaged over all ranks. Collectives: parameters of rank 0 are broadcast now."""
        return Replica(model, self.device)


def leave(*, has_failed: bool = False) -> None:
    """Leave the group at once, so that peers waiting in a collective see it and fail.

    Args:
        has_failed: collectives may be under way whose peers are gone; NCCL must be told to give them up, and would wait for them otherwise.

    Hazard: the connections close only when nothing refers to the group any more. The caller must have dropped every Replica, every
    layer with a group, and every traceback whose frames hold one.
    """
    if dist.is_initialized():
        if has_failed and dist.group.WORLD is not None:
            dist.group.WORLD.abort()
        dist.destroy_process_group()
    gc.collect()


class Replica:
    """A model whose gradients are averaged over the ranks during backward.

    DistributedDataParallel, told not to broadcast buffers: running statistics are equal already, or are the ranks' own business.

    DDP lays its buckets out anew after the first backward, in the order in which gradients came. Where a gradient lies in its bucket
    decides the order in which the ranks' parts are added, so that a resumed job, whose first step uses the first layout, would differ in
    the last bits. Therefore the first backward is a rehearsal without the model, and all real steps use the second layout.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._parallel = DistributedDataParallel(
            _Rehearsable(model),
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_KEEP_BUFFERS,
        )
        torch.autograd.backward(self._parallel(None))
        self._parallel.zero_grad(set_to_none=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the model forward."""
        return cast("Tensor", self._parallel(x))

    def without_averaging(self) -> AbstractContextManager[None]:
        """Return a context in which backward only adds to this rank's own gradients; covers forward and backward."""
        return cast("AbstractContextManager[None]", self._parallel.no_sync())


class _Rehearsable(nn.Module):
    """The model; or, called with None, a zero that depends on every parameter, whose gradients come in the reverse of their order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor | None) -> Tensor:
        if x is not None:
            return cast("Tensor", self.model(x))
        total = torch.zeros((), device=next(self.model.parameters()).device)
        for parameter in self.model.parameters():
            total = total + parameter.sum()
        return total * 0


def join(
    store: Store,
    rank: int,
    world_size: int,
    device: torch.device,
    *,
    settings: WorkerSettings | None = None,
    is_superseded: Callable[[], bool] = lambda: False,
) -> Ranks:
    """Meet the other ranks at the store and form the process group: gloo on CPU; on CUDA, NCCL with gloo beside it for CPU tensors.

    Args:
        store: where the ranks meet; each group has its own.
        rank: this one.
        world_size: how many are expected.
        device: where this rank computes.
        settings: bounds on waiting.
        is_superseded: looked at while waiting: whether this group is not wanted any more.
    Raises:
        GangStartError: the ranks did not all come within `meet_timeout_s`.
        PeerLostError: a rank went away when all were there, or the group is not wanted any more.
    """
    settings = settings or read_settings()
    await_all(store, rank, world_size, settings.meet_timeout_s, is_superseded)
    store.set_timeout(timedelta(seconds=min(settings.meet_timeout_s, CONNECT_TIMEOUT_S)))
    on_cpu = device.type == "cpu"
    # NCCL's own threads use the store to the end of the process, and must not have to wait for Python's lock.
    place = MeetingPlace(store, is_superseded) if on_cpu else store
    # A group that could not be made has been counted, and the count is in the names of its keys: another rank, new, would count otherwise.
    dist.distributed_c10d._world.group_count = 0  # noqa: SLF001 - only destroying a group that was made resets it
    try:
        dist.init_process_group(
            "gloo" if on_cpu else "cpu:gloo,cuda:nccl",
            store=place,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=min(settings.collective_timeout_s, CONNECT_TIMEOUT_S if on_cpu else settings.meet_timeout_s)),
            device_id=None if on_cpu else device,
        )
        dist.barrier()
        _set_patience(settings.collective_timeout_s)
    except RuntimeError as error:
        leave()
        raise PeerLostError(f"rank {rank} of {world_size} lost the others when all were there: {error}") from error
    return Ranks(rank, world_size, device, place)


def _set_patience(timeout_s: float) -> None:
    """Set how long the group that was made waits in a collective."""
    group = cast("Any", dist.group.WORLD)
    for device in group._device_types:  # noqa: SLF001 - as above
        group._get_backend(device)._set_default_timeout(timedelta(seconds=timeout_s))  # noqa: SLF001


def device_for(gpus_per_worker: int) -> torch.device:
    """Return the device of this process: its one GPU where it was given one, else the CPU.

    Raises:
        GangStartError: a GPU was promised and none is visible.
    """
    if not gpus_per_worker:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise GangStartError(
            "gpus_per_worker is 1 and this process sees no CUDA device; expected one; check the node's driver and torch build"
        )
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    return device
