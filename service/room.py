"""Where gangs can stand: the nodes, what is free on each, and how many workers of one kind fit. Pure values and arithmetic.

A gang may span nodes, a worker may not. All workers of a gang are alike, so a gang fits where the workers that each node can take
add up to enough (its *slots*): which nodes it then stands on makes no difference to whether it fits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_UNIT: Final = 10_000
"""CPUs are counted in ten-thousandths, which is how finely Ray counts them: sums stay exact."""


@dataclass(frozen=True)
class Bundle:
    """What one worker takes of the node that it stands on."""

    cpus: float
    gpus: int


@dataclass(frozen=True)
class Node:
    """One living node of the cluster: what it has, and what of it nobody holds."""

    id: str
    total_cpus: float
    total_gpus: int
    free_cpus: float
    free_gpus: int


Places = Mapping[str, int]
"""Where a gang stands: workers by node id."""


@dataclass(frozen=True)
class Room:
    """The cluster as it was seen: its nodes, and by job where the gangs stand that have been placed."""

    nodes: tuple[Node, ...]
    placed: Mapping[str, Places] = field(default_factory=dict)

    @property
    def total_cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.total_cpus for node in self.nodes)

    @property
    def total_gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.total_gpus for node in self.nodes)

    @property
    def free_cpus(self) -> float:
        """CPUs that nobody holds."""
        return sum(node.free_cpus for node in self.nodes)

    @property
    def free_gpus(self) -> int:
        """GPUs that nobody holds."""
        return sum(node.free_gpus for node in self.nodes)


class Ledger:
    """CPUs and GPUs node by node, to take from and give back to while a plan is made.

    `index` is each node's place in the lists `units` (of CPUs) and `gpu_counts`.
    """

    def __init__(self, cpus: Mapping[str, float], gpus: Mapping[str, int]) -> None:
        self.index = {node_id: index for index, node_id in enumerate(cpus)}
        self.units = [max(round(amount * _UNIT), 0) for amount in cpus.values()]
        self.gpu_counts = [max(gpus[node_id], 0) for node_id in cpus]

    @classmethod
    def of_free(cls, room: Room) -> "Ledger":
        """Return what is free."""
        return cls({node.id: node.free_cpus for node in room.nodes}, {node.id: node.free_gpus for node in room.nodes})

    @classmethod
    def of_all(cls, room: Room) -> "Ledger":
        """Return what there is: the cluster when idle."""
        return cls({node.id: node.total_cpus for node in room.nodes}, {node.id: node.total_gpus for node in room.nodes})

    def copy(self) -> "Ledger":
        """Return a ledger of its own with the same amounts."""
        twin = Ledger({}, {})
        twin.index, twin.units, twin.gpu_counts = self.index, self.units.copy(), self.gpu_counts.copy()
        return twin

    @property
    def cpus(self) -> float:
        """CPUs on all nodes together."""
        return sum(self.units) / _UNIT

    @property
    def gpus(self) -> int:
        """GPUs on all nodes together."""
        return sum(self.gpu_counts)

    def slots(self, bundle: Bundle) -> int:
        """Return how many workers fit, over all nodes."""
        cpus = _units(bundle)
        if not bundle.gpus:
            return sum(amount // cpus for amount in self.units)
        return sum(min(free // cpus, gpus // bundle.gpus) for free, gpus in zip(self.units, self.gpu_counts, strict=True) if gpus)

    def slots_on(self, node_id: str, bundle: Bundle) -> int:
        """Return how many workers fit on one node; none where the node is not there."""
        return self.slots_at(self.index[node_id], bundle) if node_id in self.index else 0

    def slots_at(self, index: int, bundle: Bundle) -> int:
        """Return how many workers fit on the node at a place in the lists."""
        number = self.units[index] // _units(bundle)
        return min(number, self.gpu_counts[index] // bundle.gpus) if bundle.gpus else number

    def most_on_a_node(self, bundle: Bundle) -> int:
        """Return how many workers fit on the node that takes most of them."""
        return max((self.slots_at(index, bundle) for index in range(len(self.units))), default=0)

    def take(self, bundle: Bundle, workers: int) -> dict[str, int]:
        """Let workers stand as Ray's PACK does, on few nodes and those that it fills best; return where.

        Fewer than asked for stand where there is room for fewer only.
        """
        names, places = list(self.index), {}
        slots = {index: number for index in range(len(names)) if (number := self.slots_at(index, bundle))}
        while workers and slots:
            enough = [index for index, number in slots.items() if number >= workers]
            index = min(enough, key=slots.__getitem__) if enough else max(slots, key=slots.__getitem__)
            number = min(slots.pop(index), workers)
            self.move(names[index], bundle, -number)
            places[names[index]] = number
            workers -= number
        return places

    def move(self, node_id: str, bundle: Bundle, workers: int) -> None:
        """Give back (or take, where negative) what workers hold on a node. A node that is not there holds nothing."""
        index = self.index.get(node_id)
        if index is not None:
            self.units[index] = max(self.units[index] + workers * _units(bundle), 0)
            self.gpu_counts[index] = max(self.gpu_counts[index] + workers * bundle.gpus, 0)

    def limit(self, other: "Ledger") -> None:
        """Lower every amount to that of another ledger of the same nodes."""
        self.units = list(map(min, self.units, other.units))
        self.gpu_counts = list(map(min, self.gpu_counts, other.gpu_counts))

    def beyond(self, other: "Ledger") -> "Ledger":
        """Return what there is here more than in another ledger of the same nodes."""
        more = self.copy()
        more.units = [max(mine - theirs, 0) for mine, theirs in zip(self.units, other.units, strict=True)]
        more.gpu_counts = [max(mine - theirs, 0) for mine, theirs in zip(self.gpu_counts, other.gpu_counts, strict=True)]
        return more

    def without_anywhere(self, bundle: Bundle, workers: int, seen: "Ledger") -> "Ledger":
        """Return what is left if workers that may stand on any node where they fit by `seen` stood on all of these at once."""
        left = self.copy()
        for node_id, index in self.index.items():
            number = min(seen.slots_at(index, bundle), workers)
            if number:
                left.move(node_id, bundle, -number)
        return left


def most_displaced(taken: Bundle, wanted: Bundle) -> int:
    """Return how many workers of one kind lose their place at most where one of another stands.

    >>> most_displaced(Bundle(cpus=4, gpus=0), Bundle(cpus=1.5, gpus=1)), most_displaced(Bundle(1, 1), Bundle(8, 2))
    (3, 1)
    """
    by_cpus = -(-_units(taken) // _units(wanted))
    return max(by_cpus, -(-taken.gpus // wanted.gpus)) if wanted.gpus else by_cpus


def _units(bundle: Bundle) -> int:
    return max(round(bundle.cpus * _UNIT), 1)
