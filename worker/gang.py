"""A gang on Ray: per rank a placement group and a detached, named actor in it. Form, adopt, drain, replace, stop, dissolve.

Owns the names of actors and placement groups and the mapping of Ray's exceptions. Synchronous and blocking, every wait bounded;
torch-free, so that the controller can use it. Decides nothing: what a lost rank means is the caller's business.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, get_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from worker.contract.assignment import Assignment
from worker.contract.events import Drain
from worker.family import EXIT_TIMEOUT_S, end_families, wake_families
from worker.gang_names import NAMESPACE, actor_name, attempt_in, group_name, is_of, place_in
from worker.rank_actor import RankActor

ANSWER_TIMEOUT_S = 10.0
"""How long a live actor may take to answer a call that does no work."""
STORE_TIMEOUT_S = 60.0
"""How long rank 0 may take to import torch and serve the store."""
REPLACE_TIMEOUT_S = 30.0
"""How long the place of a dead rank may take to be free and to have a new process in it."""
IDENTIFY_DOOMED_S = 2.0
"""How long ranks that are to be killed may take to say which processes they are, before Ray is asked."""
MAX_CONCURRENCY = 64
"""Calls that an actor serves at once. A controller that was killed leaves its long polls behind, for as long as one lasts."""


class GangError(RuntimeError):
    """A gang could not be formed, reached or dissolved. System fault; trying again may help."""


class NoRoomError(GangError):
    """The cluster has no room for the whole gang."""


class RankDiedError(GangError):
    """The process of a rank is gone."""


class UnreachableError(GangError):
    """Ray does not answer, or the actor cannot be reached now. Nothing is known; never a reason to declare anything dead."""


class _Process(NamedTuple):
    """Where a process runs."""

    node_id: str
    pid: int
    created: float
    """Its start time; 0 where that is not known."""


@dataclass(frozen=True)
class Member:
    """One rank's actor and the process that it is."""

    place: int
    """Its number in the gang, as long as it lives: see `service.places`."""
    handle: Any
    pid: int
    created: float
    """Start time of the process, seconds since the epoch: tells it from a later process with the same pid."""
    node_id: str
    node_ip: str
    generation: int
    """That of its newest assignment; 0 where it has been given none."""

    @property
    def process(self) -> _Process:
        """Where its process runs."""
        return _Process(self.node_id, self.pid, self.created)


def form(job_id: str, attempt: int, world_size: int, *, cpus: float, gpus: int, timeout_s: float = 60.0) -> list[Member]:
    """Reserve room for the whole gang and start its actors; all or nothing.

    Raises:
        NoRoomError: the placement group was not placed within `timeout_s`.
        GangError: an actor died or did not come up within `timeout_s`. Whatever was made is dissolved before either is raised.
    """
    deadline = time.monotonic() + timeout_s
    groups: list[PlacementGroup] = []
    try:
        for place in range(world_size):
            near = groups[-1] if groups else None
            groups.append(_reserve(group_name(job_id, attempt, place), near, cpus=cpus, gpus=gpus))
            if not groups[-1].wait(max(deadline - time.monotonic(), 0.0)):
                raise NoRoomError(f"no room for {world_size} workers of {cpus:g} CPUs and {gpus} GPUs within {timeout_s:.0f} s")
        names = [actor_name(job_id, attempt, place, 1) for place in range(world_size)]
        handles = [_create(group, name, place, cpus=cpus, gpus=gpus) for place, (group, name) in enumerate(zip(groups, names, strict=True))]
        return [_identify(f"rank {place} of {job_id}", handle, timeout_s) for place, handle in enumerate(handles)]
    except BaseException:
        dissolve(job_id, attempt)
        raise


def assign(members: Sequence[Member], generation: int, assignment: Callable[[int, str, int], Assignment]) -> list[Member]:
    """Let one rank serve the store, then hand every rank its assignment, made by `assignment(place, store_host, store_port)`.

    Returns:
        The members, now of this generation.
    Raises:
        RankDiedError, UnreachableError: a rank died or did not answer.
    """
    # One that has been at work is the quickest to serve: it has loaded torch.
    host = max(members, key=lambda member: (member.generation, -member.place))
    port = _get(host.handle.host_store.remote(generation), STORE_TIMEOUT_S, f"rank {host.place}")
    calls = [member.handle.assign.remote(assignment(member.place, host.node_ip, port).model_dump(mode="json")) for member in members]
    for member, call in zip(members, calls, strict=True):
        _get(call, ANSWER_TIMEOUT_S, f"rank {member.place}")
    return [dataclasses.replace(member, generation=generation) for member in members]


def replace(
    members: Sequence[Member],
    lost: Collection[int],
    generation: int,
    *,
    job_id: str,
    attempt: int,
    cpus: float,
    gpus: int,
    is_given_up: Callable[[], bool] = lambda: False,
) -> list[Member]:
    """Put new processes into places: of lost ranks, once the old ones are surely gone, or into new ones.

    Args:
        members: what is known of the gang, dead or alive; a lost rank without one was dead when the gang was looked for.
        lost: the places.
        generation: the one that the new processes will begin with; in their names, so that nobody makes them twice.
        job_id, attempt, cpus, gpus: which gang, and what each rank of it may use.
        is_given_up: looked at while waiting; ends the wait.
    Returns:
        All members, in the order of places; the new ones have no assignment yet.
    Raises:
        NoRoomError: there was no room within REPLACE_TIMEOUT_S, or the wait was given up. What was made is left for `dissolve`.
        GangError: an old process does not end, or a new one did not come up.
    """
    gone = [member for member in members if member.place in lost]
    # Before Ray ends them: of a process that is gone, not all that it has started is found.
    _on_their_nodes(end_families, (member.process for member in gone))
    for member in gone:
        ray.kill(member.handle, no_restart=True)
    handles = {}
    for place in sorted(lost):
        group = _reserve(group_name(job_id, attempt, place), None, cpus=cpus, gpus=gpus)
        handles[place] = _create(group, actor_name(job_id, attempt, place, generation), place, cpus=cpus, gpus=gpus)
    calls = {place: handle.identify.remote() for place, handle in handles.items()}
    deadline = time.monotonic() + REPLACE_TIMEOUT_S
    while left := ray.wait(list(calls.values()), num_returns=len(calls), timeout=0.2)[1] if calls else []:
        if is_given_up() or time.monotonic() > deadline:
            raise NoRoomError(f"{len(left)} of {len(calls)} new processes did not come up within {REPLACE_TIMEOUT_S:.0f} s")
    new = [Member(handle=handles[place], **_get(call, ANSWER_TIMEOUT_S, f"rank {place} of {job_id}")) for place, call in calls.items()]
    return sorted([*(member for member in members if member.place not in lost), *new], key=lambda member: member.place)


def drain(member: Member, after_seq: int, timeout_s: float) -> "Future[Any]":
    """Ask a rank for its events after `after_seq`; the answer comes at once if there are some, else within `timeout_s`.

    Returns:
        A future whose result is the argument of `read_drain`, and whose exception that of `read_failure`.
    """
    future: Future[Any] = member.handle.drain.remote(after_seq, timeout_s).future()
    return future


def pause(members: Sequence[Member]) -> None:
    """Ask every rank to save after the present step, and to end. Does not wait, and does not mind a rank that is gone."""
    for member in members:
        member.handle.pause.remote()


def stop(members: Sequence[Member]) -> None:
    """Ask every rank to stop at the next step. Does not wait, and does not mind a rank that is gone."""
    for member in members:
        member.handle.stop.remote()


def read_drain(answer: Any) -> Drain:
    """Turn the result of a `drain` future into a Drain."""
    return Drain.model_validate(answer)


def read_failure(error: BaseException) -> GangError:
    """Map an exception of Ray to one of ours: the actor is known dead, or nothing is known."""
    if isinstance(error, GangError):
        return error
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return UnreachableError(f"the rank cannot be reached now: {error}")
    if isinstance(error, ray.exceptions.ActorDiedError):
        return RankDiedError(_first_line(error))
    return UnreachableError(f"Ray did not answer: {type(error).__name__}: {_first_line(error)}")


def find(job_id: str, attempt: int) -> list[Member]:
    """Return the members of an attempt that are alive, in the order of places; of two in one place, the one that was made later.

    Raises:
        UnreachableError: an actor exists but does not answer; nothing is known about it.
    """
    found: dict[int, tuple[int, Member]] = {}
    named = _named(job_id, attempt)
    # A controller that is killed while it ends a gang may leave it stopped.
    _on_their_nodes(wake_families, (process for process in _located(list(named.values())) if not process.created))
    for name, handle in named.items():
        with contextlib.suppress(RankDiedError):
            member = _identify(name, handle, ANSWER_TIMEOUT_S)
            made = int(name.rpartition("/")[2])
            found[member.place] = max(found.get(member.place, (0, member)), (made, member), key=lambda entry: entry[0])
    return [found[place][1] for place in sorted(found)]


def dissolve(job_id: str, attempt: int, members: Sequence[Member] = (), *, keep: Collection[int] = ()) -> None:
    """Kill the ranks of an attempt and give their room back. Returns only when every process is gone; safe to call again.

    Args:
        job_id, attempt: which gang.
        members: what the caller knows of the gang; a dead rank's process is looked for too.
        keep: places that stay as they are.
    Raises:
        GangError: processes are left after EXIT_TIMEOUT_S, or a node does not answer; names them.
    """
    handles = [handle for name, handle in _named(job_id, attempt).items() if place_in(name) not in keep]
    # Before Ray ends them, as in `replace`.
    _on_their_nodes(end_families, [*(member.process for member in members if member.place not in keep), *_located(handles)])
    for handle in handles:
        ray.kill(handle, no_restart=True)
    for entry in placement_group_table().values():
        if entry["state"] != "REMOVED" and is_of(entry["name"], job_id, attempt) and place_in(entry["name"]) not in keep:
            _remove_group(entry["name"])


def present() -> set[tuple[str, int]]:
    """Return (job id, attempt) of everything of ours that is on the cluster: living actors, and placement groups."""
    names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE]
    names += [entry["name"] for entry in placement_group_table().values() if entry["state"] != "REMOVED"]
    return {attempt for attempt in map(attempt_in, names) if attempt is not None}


def _named(job_id: str, attempt: int) -> dict[str, Any]:
    """Return the handles of the living actors of an attempt by their names."""
    handles = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == NAMESPACE and is_of(entry["name"], job_id, attempt):
            with contextlib.suppress(ValueError):  # dead since it was listed
                handles[entry["name"]] = ray.get_actor(entry["name"], namespace=NAMESPACE)
    return handles


def _reserve(name: str, near: PlacementGroup | None, *, cpus: float, gpus: int) -> PlacementGroup:
    """Ask for the room of one rank, on the node of another where that has room; return what was asked for before, if it was.

    Each rank has a group of its own, because Ray can neither enlarge one nor give a part of it back.
    """
    with contextlib.suppress(ValueError):  # none of that name
        return get_placement_group(name)
    bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    node_id = None if near is None else placement_group_table(near)["bundles_to_node_id"][0]
    return placement_group([bundle], strategy="STRICT_PACK", name=name, lifetime="detached", _soft_target_node_id=node_id)


def _create(group: PlacementGroup, name: str, place: int, *, cpus: float, gpus: int) -> Any:
    where = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
    return (
        ray.remote(RankActor)
        .options(
            name=name, namespace=NAMESPACE, lifetime="detached", scheduling_strategy=where,
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_concurrency=MAX_CONCURRENCY, get_if_exists=True,
        )
        .remote(place)
    )  # fmt: skip


def _identify(name: str, handle: Any, timeout_s: float) -> Member:
    return Member(handle=handle, **_get(handle.identify.remote(), timeout_s, name))


def _get(reference: Any, timeout_s: float, whom: str) -> Any:
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise UnreachableError(f"{whom} did not answer within {timeout_s:.0f} s") from error
    except ray.exceptions.RayActorError as error:
        raise read_failure(error) from error
    except ray.exceptions.RayTaskError as error:
        raise GangError(f"{whom} failed to start: {_first_line(error.cause or error)}") from error


def _located(handles: Sequence[Any]) -> list[_Process]:
    """Return where living actors run: as they say, or, where they do not answer, as Ray has it, without their start time."""
    calls = {handle.identify.remote(): handle for handle in handles}
    answered = ray.wait(list(calls), num_returns=len(calls), timeout=IDENTIFY_DOOMED_S)[0] if calls else []
    processes = []
    for call, handle in calls.items():
        said = None
        if call in answered:
            with contextlib.suppress(GangError):
                said = _get(call, ANSWER_TIMEOUT_S, "a rank")
        # Stopped, or its user code keeps Python's lock. There is no public name for what Ray knows of a single actor.
        known = {} if said else ray._private.state.actors(handle._actor_id.hex())  # noqa: SLF001
        if said:
            processes.append(_Process(said["node_id"], said["pid"], said["created"]))
        elif known.get("State") == "ALIVE":
            processes.append(_Process(known["Address"]["NodeID"], known["Pid"], 0.0))
    return processes


def _on_their_nodes(act: Callable[[list[tuple[int, float]]], list[int]], processes: Iterable[_Process]) -> None:
    """Act on processes and what they have started, on the node where each runs.

    Ending is not left to Ray, which forgets an actor before its process has died, and knows nothing of what that has forked.
    """
    by_node: dict[str, list[tuple[int, float]]] = {}
    for process in processes:
        by_node.setdefault(process.node_id, []).append((process.pid, process.created))
    here = ray.get_runtime_context().get_node_id()
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    for node_id, heads in by_node.items():
        if node_id == here:
            left = act(heads)
        elif node_id in alive:
            place = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
            undertaker = ray.remote(act).options(num_cpus=0, scheduling_strategy=place)
            left = _get(undertaker.remote(heads), EXIT_TIMEOUT_S * 3, f"node {node_id}")
        else:
            continue  # the node is gone, and its processes with it
        if left:
            raise GangError(f"processes {left} on node {node_id} did not end within {EXIT_TIMEOUT_S:.0f} s")


def _remove_group(name: str) -> None:
    try:
        remove_placement_group(get_placement_group(name))
    except ValueError:
        return  # never made, or removed already


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
