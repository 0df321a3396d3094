"""A cluster without Ray whose ranks are real processes: each holds the mailbox of a rank and speaks it over a pipe.

Owns: starting ranks from a server that has loaded torch already, killing them, and the interface of service/cluster.py over them. So a
test runs the real controller and real training, kills what it likes, and takes a tenth of the time that Ray takes.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import psutil

from service.cluster import ClusterError, NoRoomError, RankDiedError
from service.room import Node, Room
from tests.support.calling import Caller, FailedError, GoneError, answer_calls
from tests.support.forking import Nursery
from tests.support.ranks import _find as find_program
from worker.contract import Assignment, Drain

POLL_S = 5.0
PREPARE_S = 60.0
Faults = tuple[str, str, Any]
"""A function to be called in every new process of the first attempt, with (rank, generation of its making, argument):
its file, its name, the argument."""


# Torch's optimizers import its compiler, which takes as long as all of the rest.
_fork = Nursery("worker.session", "worker.data.digits", "sklearn.datasets", "torch._dynamo").fork


class RankProcess:
    """One rank as a process. Calls may come from any thread; each waits for its own answer."""

    def __init__(self, rank: int, made_for: int, faults: Faults | None) -> None:
        self.rank = rank
        self.generation = 0
        pipe, child = multiprocessing.Pipe()
        self.process = _fork(_serve, rank, made_for, child, faults)
        child.close()
        self._calls = Caller(pipe)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the mailbox. Raises RankDiedError where the process is gone."""
        try:
            return self._calls.call(method, *arguments)
        except GoneError as error:
            raise RankDiedError(f"rank {self.rank}") from error
        except FailedError as error:
            raise ClusterError(*error.args) from error

    def kill(self) -> None:
        """SIGKILL, and nothing is left."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(10)


def _serve(rank: int, made_for: int, pipe: Connection, faults: Faults | None) -> None:
    """The life of a rank's process."""
    from worker.mailbox import Mailbox

    if faults is not None:
        find_program(faults[0], faults[1])(rank, made_for, faults[2])
    answer_calls(pipe, Mailbox("127.0.0.1"))
    os._exit(0)


_POOL = ThreadPoolExecutor(64)


async def _off_loop(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a blocking call in one of many threads: long polls that nobody waits for any more keep theirs for a while."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, function, *arguments)


class ProcessGang:
    """See RunningGang."""

    def __init__(self, world_size: int, faults: Faults | None) -> None:
        self.places = tuple(range(world_size))
        self._faults = faults
        self.ranks = {rank: RankProcess(rank, 1, faults) for rank in self.places}
        self._recruits: dict[int, RankProcess] = {}
        self.has_room = True
        """Whether there is room for new processes."""
        self.is_dissolved = False
        self.generation = 0

    @property
    def is_torn(self) -> bool:
        """See RunningGang."""
        return any(rank.generation < self.generation for rank in self.ranks.values() if rank.process.is_alive())

    async def assign(self, generation: int, assignment: Callable[[int, str, int], Assignment]) -> None:
        """See RunningGang."""
        self.generation = generation
        host = max(self.ranks.values(), key=lambda rank: (rank.generation, -rank.rank))
        port = await _off_loop(host.call, "host_store", generation)
        for rank in self.ranks.values():
            await _off_loop(rank.call, "assign", assignment(rank.rank, "127.0.0.1", port).model_dump(mode="json"))
            rank.generation = generation

    async def replace(
        self, lost: Collection[int], generation: int, is_given_up: Callable[[], bool], *, is_needed: Callable[[], bool]
    ) -> None:
        """See RunningGang."""
        del is_needed
        self._require_room()
        for rank in lost:
            await _off_loop(self.ranks[rank].kill)
            self.ranks[rank] = RankProcess(rank, generation, self._faults)
        if is_given_up():
            raise NoRoomError("given up")

    async def enlist(self, places: Sequence[int], preview: Callable[[int, str, int], Assignment], is_given_up: Callable[[], bool]) -> None:
        """See RunningGang."""
        del is_given_up
        self._require_room()
        self._recruits = {place: RankProcess(place, self.generation + 1, self._faults) for place in places}
        for place, recruit in self._recruits.items():
            await _off_loop(recruit.call, "prepare", preview(place, "", 0).model_dump(mode="json"), PREPARE_S)

    async def regroup(self, places: Sequence[int]) -> None:
        """See RunningGang."""
        known, self._recruits = self.ranks | self._recruits, {}
        self.places = tuple(places)
        self.ranks = {place: known[place] for place in places}
        for place in known.keys() - set(places):
            await _off_loop(known[place].kill)

    def _require_room(self) -> None:
        if not self.has_room:
            raise NoRoomError("there is no room")

    async def drain(self, rank: int, after_seq: int) -> Drain:
        """See RunningGang."""
        answer = await _off_loop(self.ranks[rank].call, "drain", after_seq, POLL_S)
        return Drain.model_validate({"rank": rank, **answer})

    async def pause(self) -> None:
        """See RunningGang."""
        await self._tell("pause")

    async def stop(self) -> None:
        """See RunningGang."""
        await self._tell("stop")

    async def dissolve(self) -> None:
        """See RunningGang."""
        for rank in (*self.ranks.values(), *self._recruits.values()):
            await _off_loop(rank.kill)
        self.is_dissolved = True

    async def _tell(self, what: str) -> None:
        """Tell every rank, without waiting for one that is stopped or minding one that is gone."""
        for rank in self.ranks.values():
            _POOL.submit(rank.call, what)


class ProcessCluster:
    """See Cluster. Outlives controllers."""

    def __init__(self, faults: Faults | None = None, cpus: int = 64) -> None:
        self.cpus = cpus
        self.gangs: dict[tuple[str, int], ProcessGang] = {}
        self.faults = faults

    async def connect(self) -> None:
        """Be there."""

    async def disconnect(self) -> None:
        """Do nothing."""

    async def is_lost(self) -> bool:
        """Never."""
        return False

    async def room(self) -> Room:
        """Room for as many ranks as it was made for."""
        taken = {job_id: {"here": len(gang.places)} for (job_id, _), gang in self.gangs.items() if not gang.is_dissolved}
        return Room((Node("here", self.cpus, 0, self.cpus - sum(place["here"] for place in taken.values()), 0),), taken)

    async def nodes(self) -> list[dict[str, Any]]:
        """Return none."""
        return []

    async def form(
        self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int, is_given_up: Callable[[], bool]
    ) -> ProcessGang:
        """Start the processes."""
        del is_given_up
        assert (cpus, gpus) == (1, 0)
        gang = self.gangs[job_id, attempt] = await _off_loop(ProcessGang, world_size, self.faults if attempt == 1 else None)
        return gang

    async def adopt(self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int) -> ProcessGang | None:
        """Return the gang if a rank of it lives."""
        gang = self.gangs.get((job_id, attempt))
        is_alive = gang is not None and any(rank.process.is_alive() and rank.generation for rank in gang.ranks.values())
        return gang if is_alive else None

    async def dissolve(self, job_id: str, attempt: int) -> None:
        """End what there is."""
        if (job_id, attempt) in self.gangs:
            await self.gangs[job_id, attempt].dissolve()

    async def present(self) -> set[tuple[str, int]]:
        """Return the gangs that are not dissolved."""
        return {key for key, gang in self.gangs.items() if not gang.is_dissolved}

    def close(self) -> None:
        """End everything."""
        for gang in self.gangs.values():
            for rank in gang.ranks.values():
                rank.kill()


def alive(gang: ProcessGang) -> list[psutil.Process]:
    """Return the living processes of a gang."""
    return [psutil.Process(rank.process.pid) for rank in gang.ranks.values() if rank.process.is_alive()]
