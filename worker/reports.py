"""What rank 0 says while training: metrics at a bearable rate, and phases. Owns the shapes of these events and the throughput."""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from worker.contract.events import EventType
from worker.progress import EventBuffer
from worker.sampler import Plan
from worker.telemetry import cost, record_of
from worker.training import StepResult

# Jobs of up to so many steps report every one; longer ones at most so often.
EVERY_STEP_UP_TO = 5000
INTERVAL_S = 0.2
THROUGHPUT_WINDOW = 20
"""Steps over which throughput and the times of steps are taken."""
KEPT_REPORTS = 1000
"""How many of the last reports every rank keeps, for the day when rank 0 dies before it was heard."""


class Reporter:
    """The events of one rank. Metrics come from rank 0 only, phases from all.

    All ranks know the same metrics; each keeps the last ones, so that a new rank 0 can say again what the old one was not heard saying.
    """

    def __init__(self, events: EventBuffer, plan: Plan) -> None:
        self._events, self._plan = events, plan
        self._reported_at = self._paced_at = 0.0
        # (time, samples trained on by then) of the last steps.
        self._marks: deque[tuple[float, int]] = deque(maxlen=THROUGHPUT_WINDOW)
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT_REPORTS)
        self.rank: int | None = None
        """In the group that this rank is in; None before the first."""
        self.generation = 1
        """That of the group that this rank is in."""

    def phase(self, name: str, step: int, message: str | None = None) -> None:
        """Say what this rank does now, after so many steps. The throughput starts anew: what comes between steps is no training."""
        self._marks.clear()
        words = {} if message is None else {"message": message}
        self._events.emit(EventType.STATE, {"phase": name, "generation": self.generation, "step": step, **words})

    def step(self, step: int, result: StepResult) -> None:
        """Report a completed step, unless the last report was a moment ago and the job is long."""
        now = time.monotonic()
        self._marks.append((now, self._plan.samples_after(step)))
        is_due = self._plan.total_steps <= EVERY_STEP_UP_TO or now - self._reported_at >= INTERVAL_S or step == self._plan.total_steps
        if result.layers and self.rank == 0:
            self._events.emit(EventType.TELEMETRY, record_of(step, result.layers).model_dump())
        if is_due or result.layers is not None:
            self._reported_at = now
            values = {f"train/{name}": value for name, value in result.metrics.items()}
            values |= {} if result.layers is None else cost(result.layers)
            self.metrics(step, values | {"lr": result.learning_rate, "data/wait_s": result.wait_s} | self._throughput() | self._pace(now))

    def warn(self, code: str, message: str) -> None:
        """Say what went wrong and was mended, on any rank; may be called in any thread."""
        self._events.emit(EventType.WARNING, {"code": code, "message": message})

    def metrics(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Report values after `step` steps; return the finite ones. A value that is no number becomes a warning instead."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        position = {"step": step, "total_steps": self._plan.total_steps, "epoch": self._plan.epochs_after(step)}
        report = {**position, "samples": self._plan.samples_after(step), "values": finite}
        self._kept.append(report)
        if self.rank == 0:
            for name in values.keys() - finite.keys():
                message = f"{name} is {values[name]} at step {step} and is left out"
                self._events.emit(EventType.WARNING, {"code": "metric_not_finite", "message": message, "step": step})
            self._events.emit(EventType.METRICS, report)
        return finite

    def is_heard(self, timeout_s: float) -> bool:
        """See EventBuffer."""
        return self._events.is_heard(timeout_s)

    def recent(self) -> list[dict[str, Any]]:
        """Return the last reports, oldest first."""
        return list(self._kept)

    def remember(self, reports: Sequence[dict[str, Any]]) -> None:
        """Take over the last reports of another rank: this one was not there."""
        self._kept = deque(reports, maxlen=KEPT_REPORTS)

    def repeat(self, reported: Mapping[str, int]) -> None:
        """On rank 0, say again what is not on record.

        Args:
            reported: by metric, the last step on record.
        """
        for report in self._kept if self.rank == 0 else ():
            if any(report["step"] > reported.get(name, 0) for name in report["values"]):
                self._events.emit(EventType.METRICS, report)

    def _throughput(self) -> dict[str, float]:
        (started_at, samples_before), (now, samples) = self._marks[0], self._marks[-1]
        return {"throughput/samples_per_s": (samples - samples_before) / (now - started_at)} if now > started_at else {}

    def _pace(self, now: float) -> dict[str, float]:
        """Return how long steps took and what memory this rank has taken at most, now and then: they change slowly."""
        if len(self._marks) < 2 or now - self._paced_at < INTERVAL_S:
            return {}
        self._paced_at = now
        took_s = sorted(later - earlier for (earlier, _), (later, _) in pairwise(self._marks))
        return {"step/p50_s": _percentile(took_s, 0.5), "step/p95_s": _percentile(took_s, 0.95), **_memory()}


def _percentile(values: Sequence[float], share: float) -> float:
    """Return the least of sorted values that so large a share of them does not exceed (nearest rank).

    >>> _percentile([1.0, 2.0, 3.0, 4.0], 0.5), _percentile([1.0, 2.0, 3.0, 4.0], 0.95), _percentile([1.0], 0.5)
    (2.0, 4.0, 1.0)
    """
    return values[math.ceil(share * len(values)) - 1]


def _memory() -> dict[str, float]:
    unit = 1 if sys.platform == "darwin" else 1024
    taken = {"memory/peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    if torch.cuda.is_available():
        taken["memory/gpu_peak_bytes"] = float(torch.cuda.max_memory_allocated())
    return taken
