"""What the controller has told a rank so far: its newest assignment, and whether to pause or to stop.

Owns the order of generations: a later one supersedes, an earlier one is refused. Knows neither Ray nor torch. The actor's threads write,
the training thread reads.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

from worker.contract.assignment import Assignment


class Request(IntEnum):
    """What a rank is asked to do between two steps. Numbers, so that the sum over all ranks still tells them apart."""

    GO_ON = 0
    PAUSE = 1
    STOP = 1 << 20

    @classmethod
    def of_sum(cls, total: float) -> "Request":
        """Return what all ranks do, from the sum of what each was asked: to stop wins over to pause, one rank suffices."""
        return cls.STOP if total >= cls.STOP else cls.PAUSE if total >= cls.PAUSE else cls.GO_ON


class Orders:
    """The controller's words to one rank."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._assignment: Assignment | None = None
        self.preview: Assignment | None = None
        """Of the assignment that this rank is going to be given; where the ranks meet is not known yet."""
        self.ready = threading.Event()
        """Set once this rank holds data and model, or never will."""
        self._hosted: tuple[int, Any] = (0, None)
        self._interrupt: tuple[int, Callable[[], None]] | None = None
        self._is_pause_asked = False
        self.stop = threading.Event()
        """Set once the rank is to end."""

    @property
    def generation(self) -> int:
        """That of the newest assignment; 0 before the first."""
        return 0 if self._assignment is None else self._assignment.generation

    @property
    def request(self) -> Request:
        """What the rank is asked to do."""
        return Request.STOP if self.stop.is_set() else Request.PAUSE if self._is_pause_asked else Request.GO_ON

    def ask_to_pause(self) -> None:
        """Have the rank write a checkpoint after the present step, and end."""
        self._is_pause_asked = True

    def ask_to_stop(self) -> None:
        """Have the rank end after the present step, or at once where it waits."""
        with self._changed:
            self.stop.set()
            self._changed.notify_all()

    def serve(self, generation: int, store: Any) -> Any:
        """Keep the store that this process serves for a generation; return the one kept, which is an earlier one where it is as new."""
        with self._changed:
            if generation > self._hosted[0]:
                self._hosted = (generation, store)
            return self._hosted[1]

    def store_of(self, generation: int) -> Any:
        """Return the store that this process serves for a generation, or None where another rank does."""
        return self._hosted[1] if self._hosted[0] == generation else None

    def assign(self, assignment: Assignment) -> bool:
        """Take a new assignment and break the group of an earlier one off; return False for one that is not newer."""
        with self._changed:
            if assignment.generation <= self.generation:
                return False
            self._assignment = assignment
            if self._interrupt is not None and self._interrupt[0] < assignment.generation:
                self._interrupt[1]()
            self._changed.notify_all()
            return True

    def is_superseded(self, generation: int) -> bool:
        """Return whether the group of a generation is not wanted any more."""
        return self.stop.is_set() or self.generation > generation

    def await_newer(self, generation: int, timeout_s: float) -> Assignment | None:
        """Wait for an assignment newer than `generation`; None after `timeout_s`, or when the rank is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_superseded(generation), timeout_s)
            return self._assignment if self.generation > generation and not self.stop.is_set() else None

    @contextlib.contextmanager
    def interrupting(self, generation: int, interrupt: Callable[[], None]) -> Iterator[None]:
        """Inside the block, call `interrupt` from another thread as soon as a newer assignment comes; at once where one has come."""
        with self._changed:
            self._interrupt = (generation, interrupt)
            if self.generation > generation:
                interrupt()
        try:
            yield
        finally:
            with self._changed:
                self._interrupt = None
