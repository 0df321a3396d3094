"""The shapes of the answers. Public: names and types here are the contract of the API."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from service.artifacts import Listed
from service.states import State
from worker.contract import EventType, Health
from worker.contract.spec import MAX_WORKERS, LabelKey, LabelValue


class Shape(BaseModel):
    """An answer, made from a value with the same attributes."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class ProgressShape(Shape):
    """How far training is."""

    step: int
    total_steps: int | None
    epoch: float
    samples: int


class TransitionShape(Shape):
    """One change of state."""

    state: State
    reason: str
    message: str
    at: datetime


class AttemptShape(Shape):
    """One gang's life."""

    number: int
    reason: str
    started_at: datetime
    finished_at: datetime | None
    world_size: int


class JobShape(Shape):
    """A job."""

    id: str
    project: str
    name: str
    state: State
    reason: str
    message: str
    labels: dict[str, str]
    priority: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: ProgressShape
    metrics: dict[str, float]
    world_size: int
    transitions: list[TransitionShape]
    attempts: list[AttemptShape]
    spec: dict[str, Any]


class JobPage(Shape):
    """Jobs, newest first."""

    data: list[JobShape]
    has_more: bool
    next_cursor: str | None


class DryRunShape(Shape):
    """The spec as it would be run: every default filled in; and what to think twice about."""

    spec: dict[str, Any]
    warnings: list[str]


class JobEdit(BaseModel):
    """What may be changed of a job. What is left out stays."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    priority: int = Field(default=0, ge=-1000, le=1000)
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=64, description="all labels; what is not here is removed")


class ResizeAsk(BaseModel):
    """How many workers a job is to have; of an elastic one, at most."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    workers: int = Field(ge=1, le=MAX_WORKERS)


class EventShape(Shape):
    """One thing that happened to a job."""

    seq: int
    at: datetime
    type: EventType
    attempt: int | None
    rank: int | None
    data: dict[str, Any]


class EventPage(Shape):
    """Events, oldest first. A page that is the last for now has no cursor; what comes later is after the last `seq` read."""

    data: list[EventShape]
    has_more: bool
    next_cursor: str | None


class LogShape(Shape):
    """One line of log."""

    seq: int
    at: datetime
    rank: int | None
    attempt: int | None
    stream: str
    level: str | None
    message: str


class LogPage(Shape):
    """Lines of log, oldest first."""

    data: list[LogShape]
    has_more: bool
    next_cursor: str | None
    num_searched: int = Field(description="lines that were looked at for this page, of all ranks where it is searched")


class SeriesShape(Shape):
    """One metric over the steps."""

    name: str
    points: list[tuple[int, float]]


class MetricsShape(Shape):
    """Metric series."""

    series: list[SeriesShape]
    is_pruned: bool
    """Whether there were points, and the operator's retention policy has dropped them."""


class FileShape(Shape):
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str


class CheckpointShape(Shape):
    """A checkpoint in a list."""

    step: int
    epoch: float
    created_at: datetime
    metrics: dict[str, float]
    health: Health
    size_bytes: int
    files: list[FileShape]
    is_best: bool
    is_latest: bool
    pinned: bool
    damaged: list[str]
    """Names of the files that are known not to be what the manifest says."""

    @classmethod
    def of(cls, listed: Listed, damaged: Sequence[str]) -> Self:
        """Return the shape of a checkpoint of which these files are damaged."""
        manifest = listed.checkpoint.manifest
        return cls(
            step=manifest.step,
            epoch=manifest.epoch,
            created_at=manifest.created_at,
            metrics=manifest.metrics,
            health=manifest.health,
            size_bytes=manifest.size_bytes,
            files=[FileShape(name=name, size=entry.size, sha256=entry.sha256) for name, entry in sorted(manifest.files.items())],
            is_best=listed.is_best,
            is_latest=listed.is_latest,
            pinned=listed.is_pinned,
            damaged=list(damaged),
        )


class CheckpointPage(Shape):
    """Checkpoints, newest first."""

    data: list[CheckpointShape]
    has_more: bool
    next_cursor: str | None


class QueuedShape(Shape):
    """A job that waits, with its place."""

    position: int
    id: str
    name: str
    priority: int
    workers: int
    created_at: datetime
    reason: str
    message: str


class QueuePage(Shape):
    """The queue, in the order in which jobs may start."""

    data: list[QueuedShape]
    has_more: bool
    next_cursor: str | None


class GroupUsageShape(Shape):
    """What the jobs of one group of a quota use, and how much they may."""

    by: str
    """label, project or token."""
    subject: str
    """The label's name; else as `by`."""
    value: str
    used: dict[str, int]
    limits: dict[str, int]


class UsageShape(Shape):
    """The groups of every quota."""

    data: list[GroupUsageShape]


class EntryShape(Shape):
    """A name that a spec may use, and the JSON schema of its arguments."""

    name: str
    summary: str
    args: dict[str, Any]


class CataloguePage(Shape):
    """The names that a spec may use."""

    data: list[EntryShape]


class ProblemEntry(BaseModel):
    """One thing wrong: where, the value found, what was expected, what to do."""

    loc: str
    value: Any
    expected: str
    remedy: str


class ProblemShape(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[ProblemEntry]
