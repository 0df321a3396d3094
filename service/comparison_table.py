"""The table of a comparison: one row for each variant, out of what is stored of its job. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any, Final

from service.states import TERMINAL, State
from service.store.records import Comparison, Job
from worker.contract import Health
from worker.contract.best import BestSpec

THROUGHPUT: Final = "throughput/samples_per_s"
SYNC_TIME: Final = "sync/time_s"
SYNC_BYTES: Final = "sync/bytes"
TRAIN_LOSS: Final = "train/loss"
VALIDATION: Final = "val/"

Series = Mapping[str, Sequence[tuple[int, float]]]


class Stage(StrEnum):
    """Where a comparison is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Score:
    """A metric on the validation data: the newest value and the best so far."""

    last: float
    best: float


@dataclass(frozen=True)
class Row:
    """One variant. None: not known, or not yet."""

    value: Any
    job_id: str
    state: State | None
    """None where the job has been deleted."""
    message: str
    step: int
    total_steps: int | None
    train_loss: float | None
    """The newest."""
    validation: Mapping[str, Score]
    """By the name of the metric, such as val/accuracy."""
    samples_per_s: float | None
    """Median over the steps."""
    sync_time_s: float | None
    """Per step, on rank 0, over all layers: median over the watched steps."""
    sync_bytes: float | None
    """Per step and rank, over all layers: median over the watched steps."""
    health: Health | None
    """Of the running statistics in the newest checkpoint."""


def stage_of(states: Collection[State | None]) -> Stage:
    """Return the stage of a comparison whose jobs are in these states; None is a deleted job, which has ended.

    >>> stage_of([State.QUEUED, None]), stage_of([State.SUCCEEDED, State.QUEUED]), stage_of([State.FAILED, None])
    (<Stage.RUNNING: 'running'>, <Stage.RUNNING: 'running'>, <Stage.ENDED: 'ended'>)
    """
    if all(state is None or state in TERMINAL for state in states):
        return Stage.ENDED
    return Stage.QUEUED if all(state is State.QUEUED for state in states) else Stage.RUNNING


def names_needed(job: Job) -> list[str]:
    """Return the names of the series that a row needs."""
    return [name for name in job.metrics if name.startswith(VALIDATION) or name in {THROUGHPUT, SYNC_TIME, SYNC_BYTES}]


def row_of(value: Any, job: Job, series: Series, health: Health | None) -> Row:
    """Return the row of a variant.

    Args:
        value: that of the compared field.
        job: the variant's job.
        series: at least those of `names_needed`.
        health: of the newest checkpoint, None before the first.
    """
    best = job.spec.checkpoint.keep_best
    return Row(
        value=value,
        job_id=job.id,
        state=job.state,
        message=job.message,
        step=job.progress.step,
        total_steps=job.progress.total_steps,
        train_loss=job.metrics.get(TRAIN_LOSS),
        validation={name: _score(name, points, best) for name, points in sorted(series.items()) if name.startswith(VALIDATION) and points},
        samples_per_s=_median(series.get(THROUGHPUT, ())),
        sync_time_s=_median(series.get(SYNC_TIME, ())),
        sync_bytes=_median(series.get(SYNC_BYTES, ())),
        health=health,
    )


def row_of_deleted(value: Any, job_id: str) -> Row:
    """Return the row of a variant whose job has been deleted."""
    return Row(value, job_id, None, "the job has been deleted", 0, None, None, {}, None, None, None, None)


def stage(comparison: Comparison) -> Stage:
    """Return the stage of a comparison as it was read."""
    return stage_of([variant.state for variant in comparison.variants])


def is_lower_better(name: str, best: BestSpec | None) -> bool:
    """Whether less of a metric is better: as the spec's `checkpoint.keep_best` says of its metric; of others, losses are."""
    return best.mode == "min" if best is not None and best.metric == name else name.endswith("loss")


def _score(name: str, points: Sequence[tuple[int, float]], best: BestSpec | None) -> Score:
    values = [value for _, value in points]
    return Score(last=values[-1], best=min(values) if is_lower_better(name, best) else max(values))


def _median(points: Sequence[tuple[int, float]]) -> float | None:
    return median(value for _, value in points) if points else None
