"""A process that makes batches for one rank. Loads no torch; ends when the rank does, however the rank ends.

Owns the messages: in, a Recipe and the descriptors of two memories, then pairs of (slot, Item); out, a Layout with what was unreadable,
or a JobFailure. Between processes of one rank, over a socket that only they have.
"""

import signal
from multiprocessing.connection import Connection
from typing import Any

from worker.data.shared_memory import SharedMemory
from worker.errors import DataError, blame, to_failure

NUM_SLOTS = 2
"""Per process: while the rank copies a batch out of one, the process fills the other."""


def main(fd: int, memory_fds: list[int]) -> None:
    """Answer until the rank closes its end, or is gone: the operating system then closes it."""
    # An interrupt at a terminal goes to all processes; the rank decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memories = [SharedMemory(memory_fd) for memory_fd in memory_fds]
    connection = Connection(fd)
    try:
        recipe = connection.recv()
        while True:
            slot, item = connection.recv()
            connection.send(_answer(recipe, memories[slot], item))
    except (EOFError, ConnectionError):
        return


def _answer(recipe: Any, memory: SharedMemory, item: Any) -> Any:
    try:
        with blame(DataError):
            made = recipe.make(item)
        return memory.write([made.x, made.y]), made.bad
    except Exception as error:  # noqa: BLE001 - it becomes data, which the rank raises
        return to_failure(error, rank=0)
