"""Which queued jobs start now, and why the others wait. Pure: priority, then age; gangs all or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """What one queued job asks for; given in the order in which jobs should start."""

    job_id: str
    workers: int
    cpus_per_worker: float
    gpus_per_worker: int

    @property
    def cpus(self) -> float:
        """CPUs of the whole gang."""
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> int:
        """GPUs of the whole gang."""
        return self.workers * self.gpus_per_worker


@dataclass(frozen=True)
class Room:
    """What the cluster has, and what of it is free."""

    total_cpus: float
    total_gpus: float
    free_cpus: float
    free_gpus: float


@dataclass(frozen=True)
class Plan:
    """The jobs to start, in order, and for every other why it waits: (reason, message)."""

    start: tuple[str, ...]
    waiting: dict[str, tuple[str, str]]


def plan(queue: Sequence[Need], room: Room) -> Plan:
    """Start from the head of the queue as long as whole gangs fit.

    A job that fits into the room left over waits all the same when one before it waits for room, or a large job would starve behind
    small ones. A job that the cluster could not hold even when idle keeps nobody waiting.

    >>> plan([Need("a", 2, 1, 0), Need("b", 8, 1, 0), Need("c", 1, 1, 0)], Room(8, 0, 4, 0))
    Plan(start=('a',), waiting={'b': ('no_room', 'needs 8 CPUs, 2 free'), 'c': ('behind', 'waits for 1 job before it')})
    """
    start: list[str] = []
    waiting: dict[str, tuple[str, str]] = {}
    free_cpus, free_gpus, blocked = room.free_cpus, room.free_gpus, 0
    for need in queue:
        if need.cpus > room.total_cpus or need.gpus > room.total_gpus:
            have = f"the whole cluster has {_amount(room.total_cpus, room.total_gpus, need)}"
            waiting[need.job_id] = ("too_large", f"needs {_amount(need.cpus, need.gpus, need)}, {have}; add nodes or use fewer workers")
        elif blocked:
            waiting[need.job_id] = ("behind", f"waits for {blocked} job{'s' if blocked > 1 else ''} before it")
            blocked += 1
        elif need.cpus <= free_cpus and need.gpus <= free_gpus:
            start.append(need.job_id)
            free_cpus, free_gpus = free_cpus - need.cpus, free_gpus - need.gpus
        else:
            waiting[need.job_id] = (
                "no_room",
                f"needs {_amount(need.cpus, need.gpus, need)}, {_amount(free_cpus, free_gpus, need, '')} free",
            )
            blocked = 1
    return Plan(tuple(start), waiting)


def _amount(cpus: float, gpus: float, need: Need, unit: str = " CPUs") -> str:
    if need.gpus:
        return f"{gpus:g} GPUs and {cpus:g} CPUs"
    return f"{cpus:g}{unit}"
