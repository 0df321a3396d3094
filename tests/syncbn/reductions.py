"""How many reductions the library sends. Owns the counting, in a process of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from syncbn import collectives


@contextmanager
def counted_reductions() -> Iterator[list[int]]:
    """Yield a list that gets the number of entries of every vector that is summed over ranks in the block."""
    original, sizes = collectives._start, []

    def counting(vector: Tensor, group: collectives.ProcessGroup) -> Callable[[], Tensor]:
        sizes.append(vector.numel())
        return original(vector, group)

    collectives._start = counting
    try:
        yield sizes
    finally:
        collectives._start = original
