"""How many reductions the library sends. Owns the counting, in a process of a group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from syncbn import collectives


@contextmanager
def counted_reductions() -> Iterator[list[int]]:
    """Yield a list that gets the number of entries of every vector that is summed over ranks in the block."""
    original, sizes = collectives._OPS, []

    class Counting:
        """The functional collectives, the reductions written down."""

        wait_tensor = original.wait_tensor

        @staticmethod
        def all_reduce(vector: Tensor, *arguments) -> Tensor:
            """Write down and pass on."""
            sizes.append(vector.numel())
            return original.all_reduce(vector, *arguments)

    collectives._OPS = Counting
    try:
        yield sizes
    finally:
        collectives._OPS = original
