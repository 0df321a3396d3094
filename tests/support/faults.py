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

    import worker.copying
    import worker.course
    import worker.holding
    import worker.publisher
    import worker.session
    from syncbn import collectives
    from worker.course import Course
    from worker.ranks import Ranks

    places: dict[str, tuple[Any, str]] = {
        "build": (worker.holding, "build_model"),
        "meet": (worker.session, "join"),
        "agree": (Ranks, "gather"),
        "hand over": (Ranks, "broadcast"),
        "before optimizer": (torch.optim.SGD, "step"),
        "evaluate": (worker.course, "evaluate"),
        "copy": (worker.copying.Buffers, "copy"),
        "publish": (worker.publisher, "publish"),
        "recalibrate": (Course, "_recalibrate"),
        "farewell": (Course, "_part"),
        "parked": (worker.session._Rank, "_park"),
    }
    if moment in _REDUCTIONS:
        end = _wait_for_nobody if moment == "wait for nobody" else end
        collectives._start = _Dying(collectives._start, step, _REDUCTIONS[moment], end, is_entered=moment == "under way")
    elif moment == "hang":
        _around(torch.optim.SGD, "step", lambda original, *given: _hang() if _at_step == step else original(*given))
    elif moment.startswith("after "):
        where, name = places["before optimizer" if moment == "after optimizer" else moment.removeprefix("after ")]

        def after(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
            result = original(*given, **named)
            if moment != "after optimizer" or _at_step == step:
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
    """What begins the layers' reductions. At one of them it kills; or does something else, each time the step is tried."""

    def __init__(self, start: Any, step: int, number: int, end: Callable[[], None], *, is_entered: bool = False) -> None:
        self._start, self._step, self._number, self._left, self._end, self._is_entered = start, step, number, number, end, is_entered

    def __call__(self, *given: Any) -> Any:
        self._left -= _at_step == self._step
        is_due = self._left == 0
        if is_due:
            self._left = self._number
        if is_due and not self._is_entered:
            self._end()
        started = self._start(*given)
        if is_due and self._is_entered:
            self._end()
        return started


_REDUCTIONS = {
    "forward": 7,
    "backward": 28,  # in the middle of it, between two layers
    "under way": 31,  # the others have its part of the sum already
    "wait for nobody": 7,  # as code does that leaves out a collective, or has one too many: the others are elsewhere, and all wait
}
"""At which of the 40 of a step."""


def _around(where: Any, name: str, wrapper: Callable[..., Any]) -> None:
    original = getattr(where, name)
    setattr(where, name, lambda *given, **named: wrapper(original, *given, **named))
