"""The room of ranks on Ray: a placement group per place of a gang. Reserved, looked at, given back.

Each rank has a group of its own, because Ray can neither enlarge one nor give a part of it back.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, get_placement_group

LOOK_S = 0.1
"""How often a room that is not there yet is looked for."""


def reserve(name: str, near: PlacementGroup | None, *, cpus: float, gpus: int) -> PlacementGroup:
    """Ask for the room of one rank, on the node of another where that has room; return what was asked for before, if it was."""
    with contextlib.suppress(ValueError):  # none of that name
        return get_placement_group(name)
    bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    node_id = None if near is None else placement_group_table(near)["bundles_to_node_id"][0]
    return placement_group([bundle], strategy="STRICT_PACK", name=name, lifetime="detached", _soft_target_node_id=node_id)


def is_given(group: PlacementGroup) -> bool:
    """Return whether a living node keeps the room that was asked for."""
    return bool(placement_group_table(group).get("state") == "CREATED")


def await_room(group: PlacementGroup, deadline: float, is_given_up: Callable[[], bool]) -> bool:
    """Return whether the room was given before the deadline (monotonic), and before the wait was given up."""
    while not is_given(group):
        if is_given_up() or time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def num_fitting(*, cpus: float, gpus: int) -> int:
    """Return how many ranks the free room of the living nodes would take, as far as these have told."""
    # Ray has no public name for what is free on each node.
    free = ray._private.state.available_resources_per_node()  # noqa: SLF001
    return sum(_ranks_in(node, cpus, gpus) for node in free.values())


def names() -> list[str]:
    """Return the names of all placement groups that there are, ours and others'."""
    return [entry["name"] for entry in placement_group_table().values() if entry["state"] != "REMOVED"]


def give_back(rooms: Iterable[str]) -> None:
    """Remove placement groups by name."""
    for name in rooms:
        _remove(name)


def _remove(name: str) -> None:
    try:
        remove_placement_group(get_placement_group(name))
    except ValueError:
        return  # never made, or removed already


def _ranks_in(free: dict[str, Any], cpus: float, gpus: int) -> int:
    # A hair more than what is free, because fractions of a CPU are sums of floating point.
    by_cpu = int(free.get("CPU", 0.0) / cpus + 1e-6) if cpus else None
    by_gpu = int(free.get("GPU", 0.0) / gpus + 1e-6) if gpus else None
    return min((number for number in (by_cpu, by_gpu) if number is not None), default=1)
