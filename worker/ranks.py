"""The ranks of a gang as one group: how they meet, speak and part. The worker's only file with torch.distributed.

Owns the process group, its device and its network interface. Knows nothing of models, data or jobs.

Every collective must be called by every rank of the group, in the same order; a rank that does not is noticed after
`WorkerSettings.collective_timeout_s`, one that died at once.
"""

import gc
import ipaddress
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from inspect import signature
from typing import Any, Protocol, cast

import psutil
import torch
import torch.distributed as dist

# Imported before any group exists: it keeps `group.WORLD` of the moment of its import in default arguments, for ever. Left to DDP, which
# imports it lazily, it would keep the group and its sockets alive, and peers would not notice that this rank has left.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch._C._distributed_c10d import Store, TCPStore
from torch.nn.parallel import DistributedDataParallel

from worker.errors import GangStartError, PeerLostError
from worker.settings import WorkerSettings, export_interface, read_settings

# DDP's own synchronization of buffers before every forward; torch 2.13 renamed it.
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


_LOOK_S = 0.005
"""How often a rank that waits for the others looks whether all are there."""
_CONNECT_TIMEOUT_S = 20.0
"""How long the connections between ranks that are all there may take."""


class Pending(Protocol):
    """A collective under way."""

    def wait(self) -> Any:
        """Wait until the tensor holds the result."""


def host_store(host: str) -> TCPStore:
    """Serve the store at which the ranks meet, on a free port of the interface with address `host`."""
    timeout = timedelta(seconds=read_settings().meet_timeout_s)
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    # The store takes the descriptor over, so that it listens on this one interface and not on all.
    return TCPStore(host, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True)


def connect_store(host: str, port: int) -> TCPStore:
    """Connect to the store that one of the ranks serves. It listened before this rank was told of it.

    Raises:
        PeerLostError: the host refuses: the rank that served it is gone.
        GangStartError: nothing answers there.
    """
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except (ConnectionRefusedError, ConnectionResetError) as error:
        raise PeerLostError(f"the rank that served the store of the gang at {host}:{port} is gone: {error}") from error
    except OSError as error:
        raise GangStartError(
            f"the store of the gang at {host}:{port} does not answer: {error}; see whether the nodes reach each other"
        ) from error
    timeout = timedelta(seconds=min(read_settings().meet_timeout_s, _CONNECT_TIMEOUT_S))
    try:
        return TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise PeerLostError(f"the rank that served the store of the gang at {host}:{port} is gone: {error}") from error


def bind_interface(node_ip: str) -> None:
    """Make the communication libraries use the network interface that carries `node_ip`.

    Their own choice follows the host name, which on many machines resolves to 127.0.0.1; ranks on two hosts then never meet.

    Raises:
        GangStartError: no interface carries the address.
    """
    export_interface(interface_of(node_ip))


def interface_of(node_ip: str) -> str:
    """Return the name of the network interface that carries an IPv4 or IPv6 address."""
    wanted = ipaddress.ip_address(node_ip)
    seen = []
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family not in {socket.AF_INET, socket.AF_INET6}:
                continue
            address = ipaddress.ip_address(entry.address.partition("%")[0])
            if address == wanted or (address.is_loopback and wanted.is_loopback):
                return name
            seen.append(f"{name}={address}")
    raise GangStartError(
        f"no network interface of this host carries {node_ip}; expected one of {', '.join(seen)}; check the node address of Ray"
    )


class Ranks:
    """One rank's membership in the group: who it is, and the collectives it may take part in."""

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device

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
        if dist.group.WORLD is not None:
            dist.group.WORLD.abort()

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
    _await_all(store, rank, world_size, settings.meet_timeout_s, is_superseded)
    store.set_timeout(timedelta(seconds=min(settings.meet_timeout_s, _CONNECT_TIMEOUT_S)))
    on_cpu = device.type == "cpu"
    # A group that could not be made has been counted, and the count is in the names of its keys: another rank, new, would count otherwise.
    dist.distributed_c10d._world.group_count = 0  # noqa: SLF001 - only destroying a group that was made resets it
    try:
        dist.init_process_group(
            "gloo" if on_cpu else "cpu:gloo,cuda:nccl",
            # NCCL's own threads use the store to the end of the process, and must not have to wait for Python's lock.
            store=_MeetingPlace(store, is_superseded) if on_cpu else store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=min(settings.collective_timeout_s, _CONNECT_TIMEOUT_S if on_cpu else settings.meet_timeout_s)),
            device_id=None if on_cpu else device,
        )
        dist.barrier()
        _set_patience(settings.collective_timeout_s)
    except RuntimeError as error:
        leave()
        raise PeerLostError(f"rank {rank} of {world_size} lost the others when all were there: {error}") from error
    return Ranks(rank, world_size, device)


class _MeetingPlace(Store):
    """The store as a group is made with it: a wait in it ends when the group is not wanted any more.

    Else the survivors of a rank that died when all were there, before the connections were made, would wait for it to the time limit.
    """

    def __init__(self, store: Store, is_superseded: Callable[[], bool]) -> None:
        super().__init__()
        self._store, self._is_superseded = store, is_superseded

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def add(self, key: str, amount: int) -> int:
        return self._store.add(key, amount)

    def check(self, keys: list[str]) -> bool:
        return self._store.check(keys)

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(key)

    def wait(self, keys: list[str], timeout: timedelta = timedelta(seconds=_CONNECT_TIMEOUT_S)) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        while not self._store.check(keys):
            if self._is_superseded():
                raise dist.DistStoreError(f"{', '.join(keys)} are waited for no longer: the ranks are to meet anew, or to stop")
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"{', '.join(keys)} have not come after {timeout.total_seconds():g} s")
            time.sleep(_LOOK_S)


def _set_patience(timeout_s: float) -> None:
    """Set how long the group that was made waits in a collective."""
    group = cast("Any", dist.group.WORLD)
    for device in group._device_types:  # noqa: SLF001 - as above
        group._get_backend(device)._set_default_timeout(timedelta(seconds=timeout_s))  # noqa: SLF001


def _await_all(store: Store, rank: int, world_size: int, timeout_s: float, is_superseded: Callable[[], bool]) -> None:
    """Wait until every rank has come to the store.

    Not left to torch, whose wait nothing can end: a rank that dies before it has come must cost the others no more than a new assignment.
    """
    keys = [f"here/{other}" for other in range(world_size)]
    deadline = time.monotonic() + timeout_s
    try:
        store.set(keys[rank], "")
        while not store.check(keys):
            if is_superseded():
                raise PeerLostError(f"rank {rank} of {world_size} waits no longer for the others: the ranks are to meet anew, or to stop")
            if time.monotonic() > deadline:
                missing = [other for other in range(world_size) if not store.check([keys[other]])]
                raise GangStartError(
                    f"rank {rank} of {world_size} did not meet the others: ranks {missing} have not come after {timeout_s:g} s; expected"
                    " all; see their logs, and whether their nodes reach this one"
                )
            time.sleep(_LOOK_S)
    except RuntimeError as error:
        raise PeerLostError(f"rank {rank} of {world_size} lost the store at which the ranks meet: {error}") from error


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
