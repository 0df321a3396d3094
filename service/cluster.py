"""The Ray adapter of the controller: connects, says how much room there is, and runs the gang's blocking calls off the event loop.

The one file of `service` that imports Ray. `Cluster` and `RunningGang` are what the reconciler sees; a fake implements the same.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from service import embedded
from service.doorway import no_listener, open_door
from service.places import places_of
from service.room import Node, Room
from service.settings import export_ray_patience, export_ray_token
from worker.contract import Assignment, Drain

_THREADS = ThreadPoolExecutor(256, "gang")
"""For calls of gangs. One that waits keeps a thread for up to a minute: asyncio's, few on a small machine, would be used up."""
Look = Callable[[], bool]
"""Asked again and again while something is waited for."""
POLL_S = 5.0
"""Length of a long poll: a dead rank is noticed at once whatever it is."""


class ClusterError(RuntimeError):
    """The cluster did not do what it was asked. Trying again may help."""


class NoRoomError(ClusterError):
    """The gang does not fit now."""


class RankDiedError(ClusterError):
    """The process of a rank is gone."""


class RunningGang(Protocol):
    """One attempt's ranks."""

    @property
    def places(self) -> tuple[int, ...]:
        """Where its ranks stand, in order: see `service.places`. What is called a rank below is named by its place."""

    @property
    def generation(self) -> int:
        """The newest one that any rank may have been told; 0 before the first."""

    @property
    def is_torn(self) -> bool:
        """Whether a living rank has not been told the newest generation, or belongs to no place: whoever was at it was cut off."""

    async def assign(self, generation: int, assignment: Callable[[int, str, int], Assignment]) -> None:
        """Give every rank its assignment of a generation, made by `assignment(place, store_host, store_port)`."""

    async def replace(self, lost: Collection[int], generation: int, is_given_up: Look, *, is_needed: Look) -> None:
        """Put new processes into the places of lost ranks. Raises NoRoomError where a place does not come back, or on giving up:

        where the gang can do without them (`is_needed` returns False, also in the midst of it), as soon as there is no room for them.
        """

    async def enlist(self, places: Sequence[int], preview: Callable[[int, str, int], Assignment], is_given_up: Look) -> None:
        """Start processes in new places, and have them build data and model for what `preview` makes of the arguments as in `assign`.

        They are no part of the gang before `regroup`, which also ends them. Raises NoRoomError as `replace` does.
        """

    async def regroup(self, places: Sequence[int]) -> None:
        """Have the gang consist of these places from now on, and return when every process in another one is gone.

        Raises ClusterError when some are left.
        """

    async def drain(self, rank: int, after_seq: int) -> Drain:
        """Wait up to POLL_S for events. Raises RankDiedError, or ClusterError when nothing is known."""

    async def pause(self) -> None:
        """Ask the ranks to save after the present step, and to end."""

    async def stop(self) -> None:
        """Ask the ranks to stop at the next step."""

    async def dissolve(self) -> None:
        """Return when every process is gone. Raises ClusterError when some are left; call again."""


class Cluster(Protocol):
    """Where gangs run."""

    async def connect(self) -> None:
        """Reach the cluster, starting an embedded one where none is configured."""

    async def disconnect(self) -> None:
        """Let go of the cluster; gangs go on."""

    async def is_lost(self) -> bool:
        """Return whether the cluster is known to be gone for good, every gang with it, so that `connect` must be called again."""

    async def room(self) -> Room:
        """Return the living nodes, what is free on each, and where the gangs stand that have been placed."""

    async def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes, for people."""

    async def form(self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int, is_given_up: Look) -> RunningGang:
        """Start the ranks of an attempt, all or none. Raises NoRoomError where they do not fit, or on giving up."""

    async def adopt(self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int) -> RunningGang | None:
        """Return the gang that runs already, or None where not one rank is alive that was told what to do.

        Dead ranks are found dead at the first drain.
        """

    async def dissolve(self, job_id: str, attempt: int) -> None:
        """End whatever there is of an attempt, known only by name."""

    async def present(self) -> set[tuple[str, int]]:
        """Return the attempts, as (job id, number), of which anything is on the cluster: processes, or room that is kept for them."""


async def _off_loop(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a blocking call of the gang in a thread, and turn its errors into ours."""
    try:
        return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(copy_context().run, function, *args, **kwargs))
    except Exception as error:
        raise _translated(error) from error


def _translated(error: Exception) -> ClusterError:
    from worker import gang_members

    if isinstance(error, gang_members.NoRoomError):
        return NoRoomError(str(error))
    if isinstance(error, gang_members.RankDiedError):
        return RankDiedError(str(error))
    return ClusterError(str(error) if isinstance(error, gang_members.GangError) else f"Ray: {type(error).__name__}: {error}")


@dataclass
class RayGang:
    """A gang on Ray. A place without a member had a rank that died before it could be found."""

    job_id: str
    attempt: int
    places: tuple[int, ...]
    cpus: float
    gpus: int
    members: Sequence[Any]
    told: int = 0
    """The newest generation that was begun to be told here: some may have heard it before another one died."""
    recruits: Sequence[Any] = ()
    """Members of the gang that is to be."""

    @property
    def generation(self) -> int:
        """See RunningGang."""
        return max(self.told, *(int(member.generation) for member in self.members), 0)

    @property
    def is_torn(self) -> bool:
        """See RunningGang."""
        return any(member.generation < self.generation or member.place not in self.places for member in self.members)

    async def assign(self, generation: int, assignment: Callable[[int, str, int], Assignment]) -> None:
        """See RunningGang."""
        from worker import gang

        self.told = generation
        self.members = await _off_loop(gang.assign, self.members, generation, assignment)

    async def replace(self, lost: Collection[int], generation: int, is_given_up: Look, *, is_needed: Look) -> None:
        """See RunningGang."""
        from worker import gang

        if any(member.place not in self.places for member in self.members):
            await self.regroup(self.places)
        wanted = self._who | {"is_given_up": is_given_up, "is_needed": is_needed}
        self.members = await _off_loop(gang.replace, self.members, lost, generation, **wanted)

    async def enlist(self, places: Sequence[int], preview: Callable[[int, str, int], Assignment], is_given_up: Look) -> None:
        """See RunningGang."""
        from worker import gang, gang_members

        wanted = self._who | {"is_given_up": is_given_up, "is_needed": lambda: False}
        self.recruits = await _off_loop(gang.replace, (), places, self.generation + 1, **wanted)
        await _off_loop(gang_members.prepare, self.recruits, preview, is_given_up)

    async def regroup(self, places: Sequence[int]) -> None:
        """See RunningGang."""
        from worker import gang

        known = [*self.members, *self.recruits]
        self.places, self.members, self.recruits = tuple(places), known, ()
        await _off_loop(gang.dissolve, self.job_id, self.attempt, known, keep=places)
        self.members = [member for member in known if member.place in places]

    @property
    def _who(self) -> dict[str, Any]:
        return {"job_id": self.job_id, "attempt": self.attempt, "cpus": self.cpus, "gpus": self.gpus}

    async def drain(self, rank: int, after_seq: int) -> Drain:
        """See RunningGang."""
        from worker import gang_members

        member = next((member for member in self.members if member.place == rank), None)
        if member is None:
            raise RankDiedError(f"rank {rank} is not alive")
        try:
            async with asyncio.timeout(POLL_S + gang_members.ANSWER_TIMEOUT_S):
                return gang_members.read_drain(await asyncio.wrap_future(gang_members.drain(member, after_seq, POLL_S)))
        except TimeoutError as error:
            raise ClusterError(
                f"rank {rank} of {self.job_id} did not answer within {POLL_S + gang_members.ANSWER_TIMEOUT_S:.0f} s"
            ) from error
        except Exception as error:
            raise _translated(gang_members.read_failure(error)) from error

    async def pause(self) -> None:
        """See RunningGang."""
        from worker import gang_members

        await _off_loop(gang_members.pause, self.members)

    async def stop(self) -> None:
        """See RunningGang."""
        from worker import gang_members

        await _off_loop(gang_members.stop, self.members)

    async def dissolve(self) -> None:
        """See RunningGang."""
        from worker import gang

        await _off_loop(gang.dissolve, self.job_id, self.attempt, [*self.members, *self.recruits])


@dataclass(frozen=True)
class RayCluster:
    """Ray at an address, or embedded in a home directory where the address is empty."""

    home: Path
    address: str
    allow_open: bool = False
    """Whether a Ray at the address may be one that asks for no token."""
    gangs: WeakValueDictionary[str, RayGang] = field(default_factory=WeakValueDictionary)
    """By job id, those that somebody here still supervises."""

    async def connect(self) -> None:
        """See Cluster."""
        await asyncio.to_thread(self._connect)

    def _connect(self) -> None:
        # First of all: a raylet that ends while this process is its driver takes the process along.
        _let_go()
        address = self.address
        if not address:
            found = embedded.ensure(self.home)
            export_ray_token(found.token_path)
            address = found.address
        problem = no_listener(address) or (open_door(address) if self.address and not self.allow_open else None)
        if problem is not None:
            raise ClusterError(problem)
        export_ray_patience()
        # Not before the token is known: Ray reads it when it is imported, and then never again.
        import ray

        from worker.gang_names import NAMESPACE

        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")

    async def is_lost(self) -> bool:
        """See Cluster. Known only of an embedded Ray; of one elsewhere, silence says nothing."""
        return not self.address and not await asyncio.to_thread(embedded.is_alive, self.home)

    async def disconnect(self) -> None:
        """See Cluster."""
        await asyncio.to_thread(_let_go)

    async def room(self) -> Room:
        """See Cluster."""
        # Ray's public `ray.available_resources` is the sum of just this.
        from ray._private.state import available_resources_per_node, total_resources_per_node

        total = await _off_loop(total_resources_per_node)
        free = await _off_loop(available_resources_per_node)
        nodes = tuple(_node(node_id, has, free.get(node_id, {})) for node_id, has in sorted(total.items()))
        return Room(nodes, {job_id: Counter(member.node_id for member in gang.members) for job_id, gang in self.gangs.items()})

    async def nodes(self) -> list[dict[str, Any]]:
        """See Cluster."""
        import ray

        return [_described(node) for node in await _off_loop(ray.nodes)]

    async def form(self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int, is_given_up: Look) -> RunningGang:
        """See Cluster."""
        from worker.gang import form

        members = await _off_loop(form, job_id, attempt, world_size, cpus=cpus, gpus=gpus, is_given_up=is_given_up)
        return self._known(RayGang(job_id, attempt, tuple(range(world_size)), cpus, gpus, members))

    async def adopt(self, job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int) -> RunningGang | None:
        """See Cluster."""
        from worker import gang

        members = await _off_loop(gang.find, job_id, attempt)
        # Those who were told what to do come first.
        by_place = sorted(members, key=lambda member: (not member.generation, member.place))
        places = places_of([member.place for member in by_place], world_size)
        found = RayGang(job_id, attempt, places, cpus, gpus, members)
        return self._known(found) if found.generation > 0 else None

    def _known(self, gang: RayGang) -> RayGang:
        self.gangs[gang.job_id] = gang
        return gang

    async def dissolve(self, job_id: str, attempt: int) -> None:
        """See Cluster."""
        from worker import gang

        await _off_loop(gang.dissolve, job_id, attempt)

    async def present(self) -> set[tuple[str, int]]:
        """See Cluster."""
        from worker import gang

        return set(await _off_loop(gang.present))


def _let_go() -> None:
    """End this process's connection to Ray, if it has one."""
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


def _node(node_id: str, has: dict[str, float], free: dict[str, float]) -> Node:
    return Node(node_id, has.get("CPU", 0.0), int(has.get("GPU", 0)), free.get("CPU", 0.0), int(free.get("GPU", 0)))


def _described(node: dict[str, Any]) -> dict[str, Any]:
    resources = {name: amount for name, amount in node["Resources"].items() if name in {"CPU", "GPU", "memory"}}
    return {"id": node["NodeID"], "address": node["NodeManagerAddress"], "is_alive": node["Alive"], "resources": resources}
