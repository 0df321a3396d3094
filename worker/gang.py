"""A gang on Ray: per rank a placement group and a detached, named actor in it. Form, adopt, replace, dissolve.

Synchronous and blocking, every wait bounded; torch-free, so that the controller can use it. Decides nothing: what a lost rank means is the
caller's business. What single ranks are asked and answer is `worker.gang_members`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from worker import rooms
from worker.contract.assignment import Assignment
from worker.family import EXIT_TIMEOUT_S, end_families, wake_families
from worker.gang_members import (
    ANSWER_TIMEOUT_S,
    GIVEN_UP,
    LOOK_S,
    GangError,
    Member,
    NoRoomError,
    Process,
    RankDiedError,
    UnreachableError,
    answer,
    identified,
)
from worker.gang_names import NAMESPACE, actor_name, attempt_in, group_name, is_of, place_in
from worker.rank_actor import RankActor
from worker.vacancy import Vacancy, given_up

STORE_TIMEOUT_S = 60.0
"""How long rank 0 may take to import torch and serve the store."""
IDENTIFY_DOOMED_S = 2.0
"""How long ranks that are to be killed may take to say which processes they are, before Ray is asked."""
MAX_CONCURRENCY = 64
"""Calls that an actor serves at once. A controller that was killed leaves its long polls behind, for as long as one lasts."""


def form(
    job_id: str,
    attempt: int,
    world_size: int,
    *,
    cpus: float,
    gpus: int,
    is_given_up: Callable[[], bool] = lambda: False,
    timeout_s: float = 60.0,
) -> list[Member]:
    """Reserve room for the whole gang and start its actors; all or nothing.

    Args:
        job_id, attempt, world_size, cpus, gpus: which gang, of how many ranks, and what each of them may use.
        is_given_up: looked at while waiting; ends the wait.
        timeout_s: for the room, and again for the actors.
    Raises:
        NoRoomError: the placement group was not placed within `timeout_s`, or the wait was given up.
        GangError: an actor died or did not come up within `timeout_s`. Whatever was made is dissolved before either is raised.
    """
    deadline = time.monotonic() + timeout_s
    groups: list[PlacementGroup] = []

    def look(left: Collection[int], waited_s: float) -> None:
        if is_given_up():
            raise NoRoomError(GIVEN_UP)
        if waited_s > timeout_s:
            raise UnreachableError(f"{len(left)} of the {world_size} ranks of {job_id} did not answer within {timeout_s:.0f} s")

    try:
        for place in range(world_size):
            near = groups[-1] if groups else None
            groups.append(rooms.reserve(group_name(job_id, attempt, place), near, cpus=cpus, gpus=gpus))
            if not rooms.await_room(groups[-1], deadline, is_given_up):
                raise NoRoomError(f"no room for {world_size} workers of {cpus:g} CPUs and {gpus} GPUs within {timeout_s:.0f} s")
        names = [actor_name(job_id, attempt, place, 1) for place in range(world_size)]
        handles = [_create(group, name, place, cpus=cpus, gpus=gpus) for place, (group, name) in enumerate(zip(groups, names, strict=True))]
        return _started(dict(enumerate(handles)), job_id, look)
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
    port = answer(host.handle.host_store.remote(generation), STORE_TIMEOUT_S, f"rank {host.place}")
    calls = [member.handle.assign.remote(assignment(member.place, host.node_ip, port).model_dump(mode="json")) for member in members]
    for member, call in zip(members, calls, strict=True):
        answer(call, ANSWER_TIMEOUT_S, f"rank {member.place}")
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
    is_needed: Callable[[], bool] = lambda: True,
) -> list[Member]:
    """Put new processes into places: of lost ranks, once the old ones are surely gone, or into new ones.

    Args:
        members: what is known of the gang, dead or alive; a lost rank without one was dead when the gang was looked for.
        lost: the places.
        generation: the one that the new processes will begin with; in their names, so that nobody makes them twice.
        job_id, attempt, cpus, gpus: which gang, and what each rank of it may use.
        is_given_up: looked at while waiting; ends the wait.
        is_needed: looked at while waiting: whether the gang cannot do without the new processes; else they are given up sooner
            (`worker.vacancy`).
    Returns:
        All members, in the order of places; the new ones have no assignment yet.
    Raises:
        NoRoomError: the new processes are given up. What was made is left for `dissolve`.
        GangError: an old process does not end, or a new one did not come up.
    """
    gone = [member for member in members if member.place in lost]
    # Before Ray ends them: of a process that is gone, not all that it has started is found.
    _on_their_nodes(end_families, (member.process for member in gone))
    for member in gone:
        ray.kill(member.handle, no_restart=True)
    groups = {place: rooms.reserve(group_name(job_id, attempt, place), None, cpus=cpus, gpus=gpus) for place in sorted(lost)}
    handles = {
        place: _create(group, actor_name(job_id, attempt, place, generation), place, cpus=cpus, gpus=gpus)
        for place, group in groups.items()
    }

    def look(left: Collection[int], waited_s: float) -> None:
        if is_given_up():
            raise NoRoomError(GIVEN_UP)
        # First what is free: a room that is given between the two looks is free in neither.
        num_fitting = rooms.num_fitting(cpus=cpus, gpus=gpus)
        num_without_room = sum(not rooms.is_given(groups[place]) for place in left)
        if reason := given_up(Vacancy(len(left), num_without_room, num_fitting, waited_s), is_needed=is_needed()):
            raise NoRoomError(reason)

    new = _started(handles, job_id, look)
    return sorted([*(member for member in members if member.place not in lost), *new], key=lambda member: member.place)


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
            member = identified(name, handle, handle.identify.remote(), ANSWER_TIMEOUT_S)
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
    rooms.give_back(name for name in rooms.names() if is_of(name, job_id, attempt) and place_in(name) not in keep)


def present() -> set[tuple[str, int]]:
    """Return (job id, attempt) of everything of ours that is on the cluster: living actors, and placement groups."""
    actors = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE]
    return {attempt for attempt in map(attempt_in, [*actors, *rooms.names()]) if attempt is not None}


def _named(job_id: str, attempt: int) -> dict[str, Any]:
    """Return the handles of the living actors of an attempt by their names."""
    handles = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == NAMESPACE and is_of(entry["name"], job_id, attempt):
            with contextlib.suppress(ValueError):  # dead since it was listed
                handles[entry["name"]] = ray.get_actor(entry["name"], namespace=NAMESPACE)
    return handles


def _started(handles: Mapping[int, Any], job_id: str, look: Callable[[Collection[int], float], None]) -> list[Member]:
    """Return the new processes in these places once all have answered.

    `look` is called again and again with the places of those that have not, and for how many seconds they have been waited for; it raises
    where that is to end.
    """
    calls = {handle.identify.remote(): place for place, handle in handles.items()}
    began = time.monotonic()
    while left := ray.wait(list(calls), num_returns=len(calls), timeout=LOOK_S)[1] if calls else []:
        look([calls[call] for call in left], time.monotonic() - began)
    return [Member(handle=handles[place], **answer(call, ANSWER_TIMEOUT_S, f"rank {place} of {job_id}")) for call, place in calls.items()]


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


def _located(handles: Sequence[Any]) -> list[Process]:
    """Return where living actors run: as they say, or, where they do not answer, as Ray has it, without their start time."""
    calls = {handle.identify.remote(): handle for handle in handles}
    answered = ray.wait(list(calls), num_returns=len(calls), timeout=IDENTIFY_DOOMED_S)[0] if calls else []
    processes = []
    for call, handle in calls.items():
        said = None
        if call in answered:
            with contextlib.suppress(GangError):
                said = answer(call, ANSWER_TIMEOUT_S, "a rank")
        # Stopped, or its user code keeps Python's lock. There is no public name for what Ray knows of a single actor.
        known = {} if said else ray._private.state.actors(handle._actor_id.hex())  # noqa: SLF001
        if said:
            processes.append(Process(said["node_id"], said["pid"], said["created"]))
        elif known.get("State") == "ALIVE":
            processes.append(Process(known["Address"]["NodeID"], known["Pid"], 0.0))
    return processes


def _on_their_nodes(act: Callable[[list[tuple[int, float]]], list[int]], processes: Iterable[Process]) -> None:
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
            left = answer(undertaker.remote(heads), EXIT_TIMEOUT_S * 3, f"node {node_id}")
        else:
            continue  # the node is gone, and its processes with it
        if left:
            raise GangError(f"processes {left} on node {node_id} did not end within {EXIT_TIMEOUT_S:.0f} s")
