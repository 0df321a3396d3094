"""Memory that the ranks of one host share, in which they add up vectors: some microseconds, where a network takes one or two milliseconds.

Owns: how ranks find out that they can share memory and come to it, the order of rounds, and how long one waits in a round. Does not own
what happens inside a round (`rounds.cpp`) or how ranks talk otherwise (`syncbn.collectives`, which gives the ways as functions).

A round that somebody has waited for in vain for `PATIENCE_S` is given up, for all ranks alike, and added up over the network instead. So
nothing depends on the memory: a rank that is late, hangs or is dead is noticed there, by the means and within the times of the network.
Sums are taken in the order of the ranks on both ways, and are equal in every bit. Tests: tests/syncbn/test_shared_memory.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from syncbn.errors import OrderError
from syncbn.native import BuildError, built

CAPACITY = 8193
"""Numbers in a vector, at most: the moments of 4096 channels. Longer ones go over the network."""
NUM_ROUNDS = 16
_NUM_UNDER_WAY = NUM_ROUNDS // 2
"""Rounds that a rank may have entered and not left. Who enters round n has left n - 8, so all have entered that, and left n - 16."""
SPIN_S = 200e-6
PATIENCE_S = 0.02

_SOURCE = Path(__file__).with_name("rounds.cpp")
_GIVEN_UP, _UNEQUAL = 1, 2  # as `Outcome` in rounds.cpp
_NONCE_BYTES = 7
_INTEGER, _DOUBLE, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


@final
class _Room(ctypes.Structure):
    """As `Room` in rounds.cpp."""

    _fields_ = (("memory", _POINTER), *((name, _INTEGER) for name in ("world_size", "rank", "capacity", "num_rounds")))


@final
class Room:
    """One rank's way into the memory."""

    def __init__(self, descriptor: int, rank: int, world_size: int) -> None:
        self._functions = _functions()
        self._room = _Room(None, world_size, rank, CAPACITY, NUM_ROUNDS)
        size = self._functions.bytes_of_memory(ctypes.byref(self._room))
        if rank == 0:
            os.ftruncate(descriptor, size + _NONCE_BYTES)
        self._memory = mmap.mmap(descriptor, size + _NONCE_BYTES)
        self._held = ctypes.c_char.from_buffer(self._memory)
        self._room.memory = ctypes.addressof(self._held)
        # A core that two ranks share is not to be spun on.
        self._spin_s = SPIN_S if world_size <= len(os.sched_getaffinity(0)) else 0.0
        self._size, self._next = size, 0
        self._under_way: deque[Round] = deque()

    @property
    def nonce(self) -> bytes:
        """By which the memory is known; at its end."""
        return self._memory[self._size :]

    @nonce.setter
    def nonce(self, nonce: bytes) -> None:
        self._memory[self._size :] = nonce

    def takes(self, vector: Tensor) -> bool:
        """Whether a vector can be added up here: the same for all ranks, whose vectors are alike."""
        return vector.device.type == "cpu" and vector.dtype == torch.float64 and vector.numel() <= CAPACITY

    def start(self, vector: Tensor, otherwise: Callable[[], Tensor]) -> Round:
        """Enter the next round with a vector that `takes` says yes to.

        Args:
            vector: the same length on all ranks.
            otherwise: adds up the same vectors over the network, in the order of the ranks; called where the round is given up. Must not
                keep the group of the ranks alive.
        """
        while self._under_way and (self._under_way[0].is_left or len(self._under_way) >= _NUM_UNDER_WAY):
            self._under_way.popleft().leave()
        this = Round(self, self._next, vector.contiguous(), otherwise)
        self._next += 1
        self._under_way.append(this)
        self._functions.enter(ctypes.byref(self._room), this.number, this.vector.data_ptr(), vector.numel())
        return this

    def leave(self, number: int, vector: Tensor, summed: Tensor) -> int:
        """Wait for a round's end, have the sum written, and return how it ended."""
        room = ctypes.byref(self._room)
        outcome: int = self._functions.leave(room, number, summed.data_ptr(), vector.numel(), self._spin_s, PATIENCE_S)
        return outcome


@final
class Round:
    """One rank's part in one round."""

    def __init__(self, room: Room, number: int, vector: Tensor, otherwise: Callable[[], Tensor]) -> None:
        self._room, self.number, self.vector, self._otherwise = room, number, vector, otherwise
        self._sum = torch.empty_like(vector)
        self._outcome: int | None = None

    @property
    def is_left(self) -> bool:
        """Whether all are known to have entered."""
        return self._outcome is not None

    def leave(self) -> None:
        """Wait until all have entered, here or, where the round is given up, on the network. Once."""
        if self._outcome is None:
            outcome = self._room.leave(self.number, self.vector, self._sum)
            if outcome == _GIVEN_UP:
                self._sum = self._otherwise()
            self._outcome = outcome

    def sum(self) -> Tensor:
        """The sum over ranks.

        Raises:
            OrderError: the ranks' vectors differ in length.
        """
        self.leave()
        if self._outcome == _UNEQUAL:
            raise OrderError(
                f"the ranks are at different reductions: this one's vector has {self.vector.numel()} numbers, another's not; expected the "
                "same layers in the same order on every rank; find the rank that skips one with order_checks"
            )
        return self._sum


@final
class _Offer(NamedTuple):
    """What ranks tell each other, int64 each: whether they can share memory at all, their host, and where the memory of rank 0 is."""

    is_able: int = 0
    host: int = 0
    process: int = 0
    descriptor: int = 0
    nonce: int = 0


def enter_room(rank: int, world_size: int, gather: Callable[[Tensor], Tensor]) -> Room | None:
    """Come to the same memory as all other ranks of a group, or to none, all of them alike.

    None where they are not all on one Linux host, in one network namespace, with a compiler.

    Args:
        rank, world_size: of the group.
        gather: returns every rank's vector, stacked in the order of ranks.

    Collectives: `gather` of 5 int64, and where all are on one host, another of one.
    """
    with ExitStack() as until_all_are_in:
        offer, room = _offer(rank, world_size, until_all_are_in)
        offers = [_Offer(*row) for row in gather(torch.tensor(offer)).tolist()]
        if not all(each.is_able and each.host == offer.host for each in offers):
            return None
        room = room or _opened(offers[0], rank, world_size)
        is_in = gather(torch.tensor([room is not None]))
        return room if bool(is_in.all()) else None


def _offer(rank: int, world_size: int, until_all_are_in: ExitStack) -> tuple[_Offer, Room | None]:
    """What this rank can do; on rank 0 also the memory, which others find as long as the stack is open."""
    try:
        _functions()
        offer = _Offer(1, _host())
        if rank:
            return offer, None
        file = until_all_are_in.enter_context(os.fdopen(os.memfd_create("syncbn"), "r+b", buffering=0))
        room = Room(file.fileno(), rank, world_size)
        room.nonce = secrets.token_bytes(_NONCE_BYTES)
        return offer._replace(process=os.getpid(), descriptor=file.fileno(), nonce=int.from_bytes(room.nonce, "big")), room
    except (BuildError, OSError, AttributeError):  # no compiler, no memory, no Linux
        return _Offer(), None


def _opened(offer: _Offer, rank: int, world_size: int) -> Room | None:
    """The memory of rank 0, or None where it cannot be reached: another user's, or another namespace of processes."""
    try:
        with Path(f"/proc/{offer.process}/fd/{offer.descriptor}").open("r+b", buffering=0) as file:
            room = Room(file.fileno(), rank, world_size)
    except (OSError, ValueError):
        return None
    return room if int.from_bytes(room.nonce, "big") == offer.nonce else None


def _host() -> int:
    """A number of the running host and network namespace. Raises OSError where there is no such thing."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    network = Path("/proc/self/ns/net").stat()
    digest = hashlib.sha256(repr((boot, network.st_dev, network.st_ino)).encode())
    return int.from_bytes(digest.digest()[:_NONCE_BYTES], "big")


@lru_cache(maxsize=1)
def _functions() -> Any:
    """The functions of rounds.cpp. Raises BuildError."""
    try:
        library = ctypes.CDLL(str(built("rounds", [_SOURCE])))
    except OSError as error:
        raise BuildError(str(error)) from error
    library.size_of_room.restype = library.bytes_of_memory.restype = _INTEGER
    assert library.size_of_room() == ctypes.sizeof(_Room)
    library.bytes_of_memory.argtypes = (_POINTER,)
    library.enter.argtypes = (_POINTER, _INTEGER, _POINTER, _INTEGER)
    library.enter.restype = None
    library.leave.argtypes = (_POINTER, _INTEGER, _POINTER, _INTEGER, _DOUBLE, _DOUBLE)
    return library
