"""From a step to its batches, made ahead of time. Owns the thread that runs ahead, and how far; the values do not depend on it.

loader_workers 0, prefetch 0     the step makes its batch itself
loader_workers 0, prefetch n     a thread of the rank keeps n batches ready
loader_workers p                 p processes make them; the thread collects, and keeps n ready beside the 2 p under way
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from worker.data.assembly import Assembled, Item, Recipe, items
from worker.data.bad import BadSample
from worker.data.loader_pool import ProcessPool, Warn
from worker.data.split import Array
from worker.errors import DataError, LoaderError, blame
from worker.sampler import Sampler
from worker.settings import read_settings

_END_TIMEOUT_S = 2.0
"""A thread that reads from storage that hangs is left behind: it ends with the process, and peers must not wait for it."""


Pair = tuple[Tensor, Tensor]
_Made = tuple[Item, Pair, tuple[BadSample, ...]]


class Loader:
    """The batches of one rank. Begins with the first one asked for; when another than the next is asked for, begins anew there."""

    def __init__(
        self, recipe: Recipe, sampler: Sampler, *, num_processes: int = 0, prefetch: int = 0, is_pinned: bool = False, warn: Warn
    ) -> None:
        """Take what to load and how far ahead.

        Args:
            recipe: makes batches.
            sampler: which samples; the loader's own, as it is used in another thread.
            num_processes: that make batches.
            prefetch: batches kept ready; at least one where there are processes.
            is_pinned: whether batches go to a CUDA device, from pinned memory.
            warn: emits a warning of a code and a message; called in another thread.
        """
        self._recipe, self._sampler, self._warn = recipe, sampler, warn
        self._num_processes, self._prefetch, self._is_pinned = num_processes, prefetch, is_pinned
        self._timeout_s = read_settings().batch_timeout_s
        self._ahead: _Ahead | None = None
        self._inline: Iterator[_Made] | None = None
        self._wait_s = 0.0
        self._bad: list[BadSample] = []

    def batch(self, step: int, part: int) -> Pair:
        """Return this rank's share of a micro-batch of a step, both counted from 0: images, and labels or masks, on the CPU.

        Raises:
            DataError: it cannot be loaded.
            LoaderError: it did not come in time, or the processes died too often.
        """
        asked_at = time.perf_counter()
        found = self._take(step)
        if found is None or (found[0].step, found[0].part) != (step, part):
            self._begin(step, part)
            found = self._take(step)
        assert found is not None, "no such step"
        self._wait_s += time.perf_counter() - asked_at
        self._bad += found[2]
        return found[1]

    def take_wait_s(self) -> float:
        """Return how long `batch` has taken since the last call, in seconds."""
        taken, self._wait_s = self._wait_s, 0.0
        return taken

    @property
    def num_bad(self) -> int:
        """Samples of the batches taken that could not be read, and that `take_bad` has not returned."""
        return len(self._bad)

    def take_bad(self) -> tuple[BadSample, ...]:
        """Return the samples that could not be read since the last call."""
        taken, self._bad = tuple(self._bad), []
        return taken

    @property
    def pids(self) -> list[int]:
        """The processes of the loader."""
        return self._ahead.pids if self._ahead else []

    def follow(self, sampler: Sampler) -> None:
        """Load by another sampler from now on, one of the loader's own; what was made ahead is dropped."""
        self.close()
        self._sampler = sampler

    def close(self) -> None:
        """End thread and processes. Returns within seconds; the loader may be used again."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._inline = None

    def _begin(self, step: int, part: int) -> None:
        self.close()
        # A sampler of its own: the thread before may still be at its last batch.
        todo = items(replace(self._sampler), self._recipe.mixing, step, self._sampler.plan.total_steps)
        for _ in range(part):
            next(todo)
        if self._num_processes or self._prefetch:
            pool = ProcessPool(self._recipe, self._num_processes, self._warn) if self._num_processes else None
            self._ahead = _Ahead(self._recipe, todo, pool, max(1, self._prefetch), is_pinned=self._is_pinned)
        else:
            self._inline = (_finished(item, self._recipe.make(item), is_pinned=self._is_pinned) for item in todo)

    def _take(self, step: int) -> _Made | None:
        """Return the next batch; None where nothing was begun, or all is made."""
        if self._ahead is not None:
            return self._ahead.take(step, self._timeout_s)
        with blame(DataError):
            return next(self._inline, None) if self._inline is not None else None


class _Ahead:
    """A thread that makes batches, or collects them from processes, and keeps a bounded number ready."""

    def __init__(self, recipe: Recipe, todo: Iterator[Item], pool: ProcessPool | None, depth: int, *, is_pinned: bool) -> None:
        self._recipe, self._todo, self._pool, self._depth, self._is_pinned = recipe, todo, pool, depth, is_pinned
        self._ready: deque[_Made] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._is_done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return self._pool.pids if self._pool else []

    def take(self, step: int, timeout_s: float) -> _Made | None:
        """Return the oldest batch, waiting for it if need be; None where all are taken."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ready or self._is_done, timeout_s):
                raise LoaderError(
                    f"no batch for step {step + 1} within {timeout_s:g} s; expected one sooner; look at the storage of the data, use more"
                    " data.loader_workers, or raise SYNCBN_BATCH_TIMEOUT_S"
                )
            if not self._ready:
                if self._error is not None:
                    raise self._error
                return None
            self._changed.notify_all()
            return self._ready.popleft()

    def close(self) -> None:
        """End the thread and the processes."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_END_TIMEOUT_S)

    def _run(self) -> None:
        """Run ahead to the end. The outermost loop of the thread: what it raises, the step that needs the batch raises."""
        try:
            with blame(DataError):
                for item, made in self._made():
                    batch = _finished(item, made, is_pinned=self._is_pinned, is_lent=self._pool is not None)
                    with self._changed:
                        self._changed.wait_for(lambda: len(self._ready) < self._depth or self._stopped.is_set())
                        self._ready.append(batch)
                        self._changed.notify_all()
                    if self._stopped.is_set():
                        break
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks
            self._error = error
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()
            if self._pool is not None:
                self._pool.close()

    def _made(self) -> Iterator[tuple[Item, Assembled]]:
        if self._pool is not None:
            return self._pool.stream(self._todo, self._stopped)
        return ((item, self._recipe.make(item)) for item in self._todo)


def _finished(item: Item, made: Assembled, *, is_pinned: bool, is_lent: bool = False) -> _Made:
    """Return a batch as tensors of their own; arrays that are lent are copied."""
    x, y = (_tensor(array, is_pinned=is_pinned, is_lent=is_lent) for array in (made.x, made.y))
    return item, (x, y), made.bad


def _tensor(array: Array, *, is_pinned: bool, is_lent: bool) -> Tensor:
    if is_pinned:
        return torch.from_numpy(array).pin_memory()
    return torch.from_numpy(np.array(array) if is_lent else array)
