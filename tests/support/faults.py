"""Deaths at named moments: planted into a rank's process before it begins, so that SIGKILL falls exactly there.

A wish is a dict {rank, moment, step, made_for, hangs}: the process that was made for generation `made_for` (1 unless said) kills itself
when it comes to the moment, of step `step` (counted from 0, 0 unless said) where the moment is one of a step; or stands still there for
good, where it `hangs`.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

_at_step = -1


def plant(rank: int, made_for: int, wishes: list[dict[str, Any]]) -> None:
    """Plant the wishes that are for this process."""
    _watch_steps()
    for wish in wishes:
        if (wish["rank"], wish.get("made_for", 1)) == (rank, made_for):
            _plant(wish["moment"], wish.get("step", 0), _hang if wish.get("hangs") else die)


def die() -> None:
    """End this process as the kernel ends one that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_steps() -> None:
    from worker.training import Trainer

    def step(original: Callable[..., Any], trainer: Trainer, number: int, orders: Any) -> Any:
        global _at_step  # noqa: PLW0603  one process trains one step at a time
        _at_step = number
        return original(trainer, number, orders)

    _around(Trainer, "step", step)


def _plant(moment: str, step: int, end: Callable[[], None]) -> None:
    import torch

    import worker.course
    import worker.holding
    import worker.publisher
    import worker.session
    from syncbn import collectives
    from worker.course import Course
    from worker.ranks import Ranks
    from worker.training import Trainer

    places: dict[str, tuple[Any, str]] = {
        "build": (worker.holding, "build_model"),
        "meet": (worker.session, "join"),
        "agree": (Ranks, "gather"),
        "hand over": (Ranks, "broadcast"),
        "backward": (Trainer, "_backward"),
        "before optimizer": (torch.optim.SGD, "step"),
        "evaluate": (worker.course, "evaluate"),
        "publish": (worker.publisher, "publish"),
        "recalibrate": (Course, "_recalibrate"),
        "farewell": (Course, "_part"),
        "parked": (worker.session._Rank, "_park"),
    }
    if moment == "forward":
        collectives._OPS = _Dying(collectives._OPS, step, after=7, end=end)
    elif moment == "backward":
        # In the middle of it, between two reductions of the layers.
        collectives._OPS = _Dying(collectives._OPS, step, after=28, end=end)
    elif moment == "wait for nobody":
        # As code does that leaves out a collective, or has one too many: the others are elsewhere, and all wait.
        collectives._OPS = _Dying(collectives._OPS, step, after=7, end=_wait_for_nobody)
    elif moment == "hang":
        _around(torch.optim.SGD, "step", lambda original, *given: _hang() if _at_step == step else original(*given))
    elif moment.startswith("after "):
        where, name = places["before optimizer" if moment == "after optimizer" else "recalibrate"]

        def after(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
            result = original(*given, **named)
            if moment == "after recalibrate" or _at_step == step:
                end()
            return result

        _around(where, name, after)
    else:
        where, name = places[moment]
        is_of_a_step = moment == "before optimizer"

        def before(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
            if not is_of_a_step or _at_step == step:
                end()
            return original(*given, **named)

        _around(where, name, before)


def _hang() -> None:
    threading.Event().wait()


def _wait_for_nobody() -> None:
    import torch
    import torch.distributed as dist

    dist.recv(torch.empty(1), src=(dist.get_rank() + 1) % dist.get_world_size())


class _Dying:
    """The functional collectives, of which one kills; or does something else, each time the step is tried."""

    def __init__(self, inner: Any, step: int, after: int, end: Callable[[], None] = die) -> None:
        self._inner, self._step, self._after, self._left, self._end = inner, step, after, after, end

    def all_reduce(self, *given: Any) -> Any:
        if _at_step == self._step:
            self._left -= 1
            if self._left == 0:
                self._left = self._after
                self._end()
        return self._inner.all_reduce(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _around(where: Any, name: str, wrapper: Callable[..., Any]) -> None:
    original = getattr(where, name)
    setattr(where, name, lambda *given, **named: wrapper(original, *given, **named))
