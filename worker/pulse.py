"""How long a rank has been in its present step, and whether it waits for other ranks in it. Decides nothing.

The training thread says when a step begins and ends; the mailbox's threads look. Between steps (evaluation, checkpoints) a rank has no
pulse: these take as long as they take.
"""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

KEPT_STEPS = 20
# Where a thread is that does nothing but wait for its peers.
_COLLECTIVES = ("/syncbn/collectives.py", "/worker/meeting.py", "/worker/ranks.py", "/torch/distributed/")
# Where it may be waiting: in the backward pass, gradients are averaged by threads of DDP's own.
_WAITING_IN = (*_COLLECTIVES, "/worker/training.py", "/torch/nn/parallel/distributed.py", "/torch/autograd/")
# What only passes a call on: where a thread is, is said by who called. The layers' collectives pass through torch's dispatcher.
_PASSING_ON = (threading.__file__, "/torch/_ops.py", "/torch/_library/")
# What has a time limit of its own, or may take minutes: no reason to suspect anybody.
_PATIENTLY_IN = ("/worker/data/", "/torch/_dynamo/", "/torch/_inductor/", "/syncbn/loops/library.py")
# Around the model: what is not in its layers' names. The locals of these frames are left alone, for they hold the group.
_AROUND = ("/torch/nn/parallel/", "/worker/ranks.py")
NAMED_AFTER_S = 2.0
"""How long a step must have taken for its layer to be looked up."""


class Pulse:
    """The steps of one rank, as seen from outside."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._durations: deque[float] = deque(maxlen=KEPT_STEPS)
        self._present: tuple[int, float, int] | None = None

    @contextlib.contextmanager
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
        while frame is not None and _is_in(frame.f_code.co_filename, _PASSING_ON):
            frame = frame.f_back
        if frame is None:
            return None
        file, idle_s = frame.f_code.co_filename, self._clock() - began
        layer = ""
        if idle_s > NAMED_AFTER_S:
            with contextlib.suppress(Exception):  # whatever modules of other people make of being looked at
                layer = _layer(frame)
        is_excused = any(_is_in(outer.f_code.co_filename, _PATIENTLY_IN) for outer in _outwards(frame))
        return {
            "step": step,
            "idle_s": idle_s,
            "usual_s": usual_s,
            # An excuse is of no use to controllers that do not know the word.
            "is_waiting": is_excused or _is_in(file, _WAITING_IN),
            "is_in_collective": not is_excused and _is_in(file, _COLLECTIVES),
            "is_excused": is_excused,
            "where": f"{'/'.join(file.rsplit('/', 2)[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}",
            "layer": layer,
        }


def _is_in(file: str, places: tuple[str, ...]) -> bool:
    return any(place in file for place in places)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _layer(frame: FrameType) -> str:
    """Return the name of the innermost module in whose forward pass a frame is, as the outermost one has it; empty where there is none."""
    codes = ((outer, outer.f_code) for outer in _outwards(frame))
    methods = [
        outer for outer, code in codes
        if code.co_name == "forward" and code.co_varnames[:1] == ("self",) and not _is_in(code.co_filename, _AROUND)
    ]  # fmt: skip
    modules = [method.f_locals["self"] for method in methods if hasattr(method.f_locals.get("self"), "named_modules")]
    return next((str(name) for name, module in modules[-1].named_modules() if module is modules[0]), "") if modules else ""
