"""Time spent on a device, added up without waiting for it. Owns: which clock belongs to which device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch


@final
class Stopwatch:
    """Adds up stretches: the host's clock for the CPU, events on the stream for CUDA, read when the sum is asked for.

    >>> stopwatch = Stopwatch()
    >>> with stopwatch.running(torch.device("cpu")):
    ...     pass
    >>> 0 < stopwatch.elapsed_s() < 1
    True
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []  # of torch.cuda.Event, which has no types

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Time what the block does on the device."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._settle()
            self._events.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin

    def elapsed_s(self) -> float:
        """The sum so far. Waits for the device."""
        for _, end in self._events:
            end.synchronize()
        self._settle()
        return self._seconds

    def _settle(self) -> None:
        """Enter the stretches that have ended, so that the list of events does not grow."""
        while self._events and self._events[0][1].query():
            start, end = self._events.pop(0)
            self._seconds += start.elapsed_time(end) / 1e3
