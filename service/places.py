"""The places of a gang: the numbers under which its processes are known, and under which events are kept. Pure.

A process keeps its place while it lives. Its rank is how many places of the gang are below its own, so that the two differ where a gang
has lost a place and goes on without. A new process never comes below the lowest living one, which is rank 0, reports, and writes.
"""

from collections.abc import Collection, Sequence
from itertools import count, islice


def free_places(taken: Collection[int], number: int) -> tuple[int, ...]:
    """Return places for new processes: the lowest free ones above the lowest that is taken.

    >>> free_places((0, 2), 2), free_places((1, 2), 1), free_places((), 2)
    ((1, 3), (3,), (0, 1))
    """
    return tuple(islice((place for place in count(min(taken, default=0)) if place not in taken), number))


def places_of(found: Sequence[int], world_size: int) -> tuple[int, ...]:
    """Return of which places a gang of so many ranks consists where processes were found in these, the likeliest members first.

    A place in which nobody was found is one whose process has died; a process in none of them is left over from a resize.

    >>> places_of((0, 2), 2), places_of((0, 2), 3), places_of((0, 1, 2), 2)
    ((0, 2), (0, 1, 2), (0, 1))
    """
    kept = found[:world_size]
    return tuple(sorted([*kept, *free_places(kept, world_size - len(kept))]))
