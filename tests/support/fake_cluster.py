"""A cluster in memory with the interface of service/cluster.py: ranks are event buffers that a test speaks through."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from service.cluster import ClusterError, NoRoomError, RankDiedError
from service.places import places_of
from service.room import Node, Room
from worker.contract import Assignment, Drain, EventType, Reading
from worker.progress import EventBuffer

POLL_S = 0.05


class FakeGang:
    """Ranks without processes. `say`, `end` and `dead` are for the test; the rest is what the controller sees."""

    def __init__(self, world_size: int) -> None:
        self.places = tuple(range(world_size))
        self.buffers = {place: EventBuffer() for place in self.places}
        self.dead: set[int] = set()
        self.assignments: list[Assignment] = []
        self.generations = dict.fromkeys(self.places, 0)
        self.generation = 0
        """The newest that was begun to be told."""
        self.enlisted: tuple[int, ...] = ()
        self.previews: list[Assignment] = []
        self.replaced: list[tuple[int, ...]] = []
        self.needed: list[bool] = []
        """Whether the gang could not have gone on without them, of every replacement that was asked for."""
        self.has_room = True
        self.is_room_awaited = False
        """Whether a replacement waits for room that is not there, as long as it is needed."""
        self.readings: dict[int, Reading] = {}
        """Where in a step ranks are."""
        self.is_cut_off = False
        self.is_asked_to_pause = False
        self.is_asked_to_stop = False
        self.is_dissolved = False
        self.is_silent = False
        self.drains = 0

    def say(self, type_: EventType, data: dict[str, Any], ranks: list[int] | None = None) -> None:
        """Emit an event on some ranks, or all."""
        for rank in self.places if ranks is None else ranks:
            self.buffers[rank].emit(type_, data)

    def end(self, outcome: str = "succeeded", failure: dict[str, Any] | None = None, ranks: list[int] | None = None) -> None:
        """Let ranks say their last word."""
        self.say(EventType.END, {"outcome": outcome, "failure": failure}, ranks)

    @property
    def is_torn(self) -> bool:
        """Whether a living rank was not told the newest, or belongs to no place."""
        living = [place for place in self.generations if place not in self.dead and place not in self.enlisted]
        return any(self.generations[place] < self.generation or place not in self.places for place in living)

    async def assign(self, generation: int, assignment: Callable[[int, str, int], Assignment]) -> None:
        """Remember what each rank was told."""
        self.generation = generation
        if self.dead:
            raise RankDiedError(f"ranks {self.dead}")
        self.assignments = [assignment(place, "127.0.0.1", 1) for place in self.places]
        for place, told in zip(self.places, self.assignments, strict=True):
            if not self.generations[place]:
                self.buffers[place].begin_after(told.after_seq)
            self.generations[place] = generation

    async def replace(
        self, lost: Collection[int], generation: int, is_given_up: Callable[[], bool], *, is_needed: Callable[[], bool]
    ) -> None:
        """Put new ranks into the places of lost ones, unless the test took the room away or cuts the controller off after it."""
        self.needed.append(is_needed())
        while self.is_room_awaited and is_needed() and not self.has_room and not is_given_up():
            await asyncio.sleep(0.005)
        if not self.has_room:
            raise NoRoomError("the place did not come back")
        if self.generations.keys() - set(self.places):
            await self.regroup(self.places)
        self.replaced.append(tuple(lost))
        for rank in lost:
            self.buffers[rank] = EventBuffer()
            self.generations[rank] = 0
            self.dead.discard(rank)
        if self.is_cut_off:
            await asyncio.sleep(3600)

    async def enlist(self, places: Sequence[int], preview: Callable[[int, str, int], Assignment], is_given_up: Callable[[], bool]) -> None:
        """Start ranks in new places, unless the test took the room away; remember what they were told beforehand."""
        if not self.has_room:
            raise NoRoomError("there is no room")
        self.enlisted = tuple(places)
        self.previews = [preview(place, "", 0) for place in places]
        for place in self.enlisted:
            self.buffers[place] = EventBuffer()
            self.generations[place] = 0

    async def regroup(self, places: Sequence[int]) -> None:
        """Let ranks go, and take new ones in, unless the test cuts the controller off before it."""
        if self.is_cut_off:
            await asyncio.sleep(3600)
        self.places, self.enlisted = tuple(places), ()
        self.dead &= set(places)
        self.buffers = {place: self.buffers[place] for place in places}
        self.generations = {place: self.generations[place] for place in places}

    async def drain(self, rank: int, after_seq: int) -> Drain:
        """Answer a long poll, short."""
        self.drains += 1
        for _ in range(10):
            if self.is_silent:
                raise ClusterError("silence")
            if rank in self.dead or self.is_dissolved:
                raise RankDiedError(f"rank {rank}")
            events, is_ended = self.buffers[rank].drain(after_seq, 0)
            if events or is_ended:
                break
            await asyncio.sleep(POLL_S / 10)
        fence = self.assignments[0].fence if self.assignments else 0
        standing = {"generation": self.generations[rank], "phase": ""} | self.buffers[rank].standing
        told = {name: standing[name] for name in ("generation", "phase")}
        return Drain(rank=rank, fence=fence, events=events, is_ended=is_ended, reading=self.readings.get(rank), **told)

    async def pause(self) -> None:
        """Remember that the ranks were asked."""
        self.is_asked_to_pause = True

    async def stop(self) -> None:
        """Remember that the ranks were asked."""
        self.is_asked_to_stop = True

    async def dissolve(self) -> None:
        """End the ranks."""
        if self.is_silent:
            raise ClusterError("silence")
        self.is_dissolved = True


class FakeCluster:
    """Room for `cpus` single-CPU ranks. Outlives controllers, as a cluster does."""

    def __init__(self, cpus: int = 8) -> None:
        self.cpus = cpus
        self.gangs: dict[tuple[str, int], FakeGang] = {}
        self.formed = asyncio.Condition()
        self.form_error: Exception | None = None
        self.is_room_kept_back = False
        self.lost = False

    async def gang(self, job_id: str, attempt: int = 1, timeout_s: float = 5.0) -> FakeGang:
        """Wait until the gang of an attempt has been started."""
        async with asyncio.timeout(timeout_s):
            while (job_id, attempt) not in self.gangs or not self.gangs[job_id, attempt].assignments:
                await asyncio.sleep(0.005)
        return self.gangs[job_id, attempt]

    def alive(self) -> list[FakeGang]:
        """Return the gangs that are not dissolved."""
        return [gang for gang in self.gangs.values() if not gang.is_dissolved]

    async def connect(self) -> None:
        """Be there (again)."""
        self.lost = False

    async def is_lost(self) -> bool:
        """Return what the test says."""
        return self.lost

    async def disconnect(self) -> None:
        """Do nothing: gangs go on."""

    async def room(self) -> Room:
        """Count the ranks of living gangs as taken."""
        free = self.cpus - sum(len(gang.places) for gang in self.alive())
        placed = {job_id: {"fake": len(gang.places)} for (job_id, _), gang in self.gangs.items() if not gang.is_dissolved}
        return Room((Node("fake", self.cpus, 0, free, 0),), placed)

    async def nodes(self) -> list[dict[str, Any]]:
        """Return one node."""
        return [{"id": "fake", "address": "127.0.0.1", "is_alive": True, "resources": {"CPU": self.cpus}}]

    async def form(
        self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int, is_given_up: Callable[[], bool]
    ) -> FakeGang:
        """Form a gang of one CPU each; refuses one for a job that has a working one. While the test keeps the room back, wait for it."""
        assert (cpus, gpus) == (1, 0)
        while self.is_room_kept_back and not is_given_up():
            await asyncio.sleep(0.005)
        if is_given_up():
            raise NoRoomError("given up")
        if self.form_error is not None:
            raise self.form_error
        if world_size > (await self.room()).free_cpus:
            raise NoRoomError("full")
        working = [gang for (job, _), gang in self.gangs.items() if job == job_id and gang.assignments and not gang.is_dissolved]
        assert not working, "a second gang for one job"
        return self.gangs.setdefault((job_id, attempt), FakeGang(world_size))

    async def adopt(self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int) -> FakeGang | None:
        """Return the gang if a rank of it lives and was told what to do."""
        assert (cpus, gpus) == (1, 0)
        gang = self.gangs.get((job_id, attempt))
        if gang is None or gang.is_dissolved or not gang.assignments or gang.dead == set(gang.generations):
            return None
        if gang.is_silent:
            raise ClusterError("silence")
        found = sorted(gang.generations, key=lambda place: (place in gang.dead, not gang.generations[place], place))
        gang.places, gang.enlisted = places_of(found, world_size), ()
        for place in set(gang.places) - set(found):
            gang.buffers[place], gang.generations[place] = EventBuffer(), 0
            gang.dead.add(place)
        return gang

    async def dissolve(self, job_id: str, attempt: int) -> None:
        """End what there is."""
        gang = self.gangs.get((job_id, attempt))
        if gang is not None:
            await gang.dissolve()

    async def present(self) -> set[tuple[str, int]]:
        """Return the gangs that are not dissolved."""
        return {key for key, gang in self.gangs.items() if not gang.is_dissolved}
