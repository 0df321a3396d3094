"""What would hold up an event loop: waits, and work on the disk. With its twin of the other client, all that is written twice."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def sleep(seconds: float) -> None:
    """Let other tasks run for so long."""
    await anyio.sleep(seconds)


async def run(work: Callable[[], T]) -> T:
    """Return what `work` returns, done in a thread. Cancelled, it is waited for: half a file is never left to a thread nobody knows of."""
    return await anyio.to_thread.run_sync(work)
