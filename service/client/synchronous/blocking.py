"""What holds up the thread that it is called from: waits, and work on the disk. The twin of the other client's file of this name."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def run(work: Callable[[], T]) -> T:
    """Return what `work` returns."""
    return work()
