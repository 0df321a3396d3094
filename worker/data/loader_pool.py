"""The loader processes of one rank, as one stream of batches in order. Owns their lives; a batch is the same whichever process makes it.

Item number j goes to process j mod n, and its answer is awaited in turn, so that the order needs no bookkeeping. A process that dies is
replaced and given its items again: they are pure functions. Only one that dies again and again ends the job.
"""

import json
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from worker.contract.failure import FailureCode, JobFailure
from worker.data.assembly import Assembled, Item, Recipe
from worker.data.loader_process import NUM_SLOTS
from worker.data.shared_memory import SharedMemory
from worker.errors import BadDataError, DataError, LoaderError, MemoryExhaustedError

MAX_RESTARTS = 3
"""Of all processes of a rank together."""
_POLL_S = 0.2
# A fresh interpreter, not a fork: a rank has threads. With the rank's own path: Ray gives its workers directories that no variable names.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from worker.data.loader_process import main; main(*json.loads(sys.argv[2]))"
)
_ERRORS = {FailureCode.BAD_DATA: BadDataError, FailureCode.OUT_OF_MEMORY: MemoryExhaustedError}
Warn = Callable[[str, str], None]


class ProcessPool:
    """Processes that make the batches of one rank."""

    def __init__(self, recipe: Recipe, num_processes: int, warn: Warn) -> None:
        self._recipe, self._warn = recipe, warn
        self._processes = [_Process(recipe) for _ in range(num_processes)]
        self._num_restarts = 0

    @property
    def pids(self) -> list[int]:
        """The processes, in order."""
        return [process.pid for process in self._processes]

    def stream(self, items: Iterator[Item], stopped: threading.Event) -> Iterator[tuple[Item, Assembled]]:
        """Yield the batch of every item, in order. Its arrays hold until the next is asked for.

        Raises:
            DataError, MemoryExhaustedError: what making a batch raised.
            LoaderError: processes died more often than MAX_RESTARTS.
        """
        pending: deque[tuple[int, Item]] = deque()
        numbered = enumerate(items)
        while not stopped.is_set():
            for number, item in numbered:
                pending.append((number, item))
                self._give(number, item, pending)
                if len(pending) == NUM_SLOTS * len(self._processes):
                    break
            if not pending:
                return
            answer = self._await(pending, stopped)
            if answer is None:
                return
            yield pending.popleft()[1], answer

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.end()

    def _give(self, number: int, item: Item, pending: deque[tuple[int, Item]]) -> None:
        try:
            self._process(number).give(_slot(number, len(self._processes)), item)
        except OSError:
            self._replace(number, pending)

    def _await(self, pending: deque[tuple[int, Item]], stopped: threading.Event) -> Assembled | None:
        """Return the next batch, or None when stopped meanwhile."""
        number, _ = pending[0]
        while not stopped.is_set():
            try:
                if self._process(number).connection.poll(_POLL_S):
                    return self._process(number).take(_slot(number, len(self._processes)))
            except (EOFError, OSError):
                self._replace(number, pending)
        return None

    def _replace(self, number: int, pending: deque[tuple[int, Item]]) -> None:
        """Start the process of an item anew, and give it all its pending items again."""
        place = number % len(self._processes)
        dead = self._processes[place]
        dead.end()
        self._num_restarts += 1
        message = f"loader process {dead.pid} ended with code {dead.exit_code} at step {pending[0][1].step}"
        if self._num_restarts > MAX_RESTARTS:
            raise LoaderError(
                f"{message}, the {self._num_restarts}th to do so; expected at most {MAX_RESTARTS}; look for its memory and its log"
            )
        self._warn("loader_restarted", f"{message}; another takes its place")
        self._processes[place] = _Process(self._recipe)
        for other, item in list(pending):
            if other % len(self._processes) == place:
                self._give(other, item, pending)

    def _process(self, number: int) -> "_Process":
        return self._processes[number % len(self._processes)]


class _Process:
    """One process, and what it shares with the rank."""

    def __init__(self, recipe: Recipe) -> None:
        own, theirs = socket.socketpair()
        self._memories = [SharedMemory() for _ in range(NUM_SLOTS)]
        fds = [memory.fd for memory in self._memories]
        arguments = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), json.dumps([theirs.fileno(), fds])]
        self._popen = subprocess.Popen(arguments, pass_fds=[theirs.fileno(), *fds], stdin=subprocess.DEVNULL)  # noqa: S603 - our own program
        theirs.close()
        self.connection = Connection(own.detach())
        self._recipe: Recipe | None = recipe

    @property
    def pid(self) -> int:
        """Of the operating system."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Negative: the signal that ended it."""
        return self._popen.returncode

    def give(self, slot: int, item: Item) -> None:
        """Send an item, before the first one the recipe."""
        if self._recipe is not None:
            self.connection.send(self._recipe)
            self._recipe = None
        self.connection.send((slot, item))

    def take(self, slot: int) -> Assembled:
        """Receive the batch of the oldest item; it lies in the memory of the slot."""
        answer: Any = self.connection.recv()
        if isinstance(answer, JobFailure):
            raise _ERRORS.get(answer.code, DataError)(answer.message)
        layout, bad = answer
        x, y = self._memories[slot].views(layout)
        return Assembled(x, y, bad)

    def end(self) -> None:
        """Kill the process: it holds nothing that could be lost. A second call does nothing."""
        self.connection.close()
        self._popen.kill()
        self._popen.wait()
        for memory in self._memories:
            memory.close()


def _slot(number: int, num_processes: int) -> int:
    """Return which of its process's memories the item's batch goes to: in turn."""
    return number // num_processes % NUM_SLOTS
