"""How long a rank has been in its present step, and whether it waits for other ranks in it. Decides nothing.

The training thread says when a step begins and ends; the mailbox's threads look. Between steps (evaluation, checkpoints) a rank has no
pulse: these take as long as they take.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

KEPT_STEPS = 20
# Where a thread is that waits for its peers: in collectives, or in the backward pass, whose gradients are averaged by threads of DDP's own.
_WAITING_IN = (
    "/syncbn/collectives.py", "/worker/meeting.py", "/worker/ranks.py", "/worker/training.py",
    "/torch/distributed/", "/torch/nn/parallel/distributed.py", "/torch/autograd/",
)  # fmt: skip
# What has a time limit of its own, or may take minutes: no reason to suspect anybody.
_PATIENTLY_IN = ("/worker/data/", "/torch/_dynamo/", "/torch/_inductor/")


class Pulse:
    """The steps of one rank, as seen from outside."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._durations: deque[float] = deque(maxlen=KEPT_STEPS)
        self._present: tuple[int, float, int] | None = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around a step, counted from 0, in the thread that does it."""
        began = self._clock()
        self._present = (step, began, threading.get_ident())
        try:
            yield
            self._durations.append(self._clock() - began)
        finally:
            self._present = None

    def reading(self) -> dict[str, Any] | None:
        """Return the present step as the data of a Reading; None between steps, and before a first one has been completed."""
        present, usual_s = self._present, max(self._durations, default=None)
        if present is None or usual_s is None:
            return None
        step, began, thread = present
        frame = sys._current_frames().get(thread)  # noqa: SLF001 - there is no other way to see another thread's frames
        while frame is not None and frame.f_code.co_filename == threading.__file__:
            frame = frame.f_back
        if frame is None:
            return None
        file = frame.f_code.co_filename
        where = f"{'/'.join(file.rsplit('/', 2)[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}"
        is_waiting = _is_in(file, _WAITING_IN) or any(_is_in(outer, _PATIENTLY_IN) for outer in _files(frame))
        return {"step": step, "idle_s": self._clock() - began, "usual_s": usual_s, "is_waiting": is_waiting, "where": where}


def _is_in(file: str, places: tuple[str, ...]) -> bool:
    return any(place in file for place in places)


def _files(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back
