"""How ranks find each other before they are a group: the store that one of them serves, the network interface, who has come.

Owns the store's life and every wait in it. Makes no group: that is worker/ranks.py.
"""

import ipaddress
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import psutil
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from worker.errors import GangStartError, PeerLostError
from worker.settings import export_interface, read_settings

_LOOK_S = 0.005
"""How often a rank that waits for the others looks whether all are there."""
CONNECT_TIMEOUT_S = 20.0
"""How long the connections between ranks that are all there may take."""


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
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except (ConnectionRefusedError, ConnectionResetError) as error:
        raise PeerLostError(f"the rank that served the store of the gang at {host}:{port} is gone: {error}") from error
    except OSError as error:
        raise GangStartError(
            f"the store of the gang at {host}:{port} does not answer: {error}; see whether the nodes reach each other"
        ) from error
    timeout = timedelta(seconds=min(read_settings().meet_timeout_s, CONNECT_TIMEOUT_S))
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


class MeetingPlace(Store):
    """The store as a group is made with it: a wait in it ends when the group is not wanted any more.

    Else the survivors of a rank that died when all were there, before the connections were made, would wait for it to the time limit.

    Hazard: torch keeps the C++ half only. Somebody must hold this object for as long as the group, or its sub-groups, ask the store.
    """

    def __init__(self, store: Store, is_superseded: Callable[[], bool]) -> None:
        super().__init__()
        self._store, self._is_superseded = store, is_superseded

    def set(self, key: str, value: str) -> None:
        """Store a value."""
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """Return the value of a key that is there."""
        return self._store.get(key)

    def add(self, key: str, amount: int) -> int:
        """Add to a number, and return the sum."""
        return self._store.add(key, amount)

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are there."""
        return self._store.check(keys)

    def delete_key(self, key: str) -> bool:
        """Forget a key; return whether it was there."""
        return self._store.delete_key(key)

    def wait(self, keys: list[str], timeout: timedelta = timedelta(seconds=CONNECT_TIMEOUT_S)) -> None:
        """Return once all keys are there.

        Raises:
            DistStoreError: they did not come in time, or are not wanted any more.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        while not self._store.check(keys):
            if self._is_superseded():
                raise dist.DistStoreError(f"{', '.join(keys)} are waited for no longer: the ranks are to meet anew, or to stop")
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"{', '.join(keys)} have not come after {timeout.total_seconds():g} s")
            time.sleep(_LOOK_S)


def await_all(store: Store, rank: int, world_size: int, timeout_s: float, is_superseded: Callable[[], bool]) -> None:
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
