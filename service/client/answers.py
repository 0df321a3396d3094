"""What the service answers, as types: the dictionaries that the client returns are of these.

Generated from the OpenAPI document by `make format`: change the shapes in service/api.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from service.client.checkpoint_answers import Health

EventType = Literal["state", "metrics", "log", "checkpoint", "pruned", "recovery", "resize", "telemetry", "warning", "gap", "end"]
Scope = Literal["read", "submit", "code", "admin"]
Stage = Literal["queued", "running", "ended"]
State = Literal["queued", "starting", "running", "recovering", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]


class Attempt(TypedDict):
    """One gang's life."""

    number: int
    reason: str
    started_at: str
    finished_at: str | None
    world_size: int


class Catalogue(TypedDict):
    """The names that a spec may use."""

    data: list[CatalogueEntry]


class CatalogueEntry(TypedDict):
    """A name that a spec may use, and the JSON schema of its arguments."""

    name: str
    summary: str
    args: dict[str, Any]


class Cluster(TypedDict):
    """The cluster, as this controller sees it."""

    is_connected: bool
    message: str
    nodes: list[Node]
    room: Room | None
    gangs: list[str]


class Code(TypedDict):
    """Uploaded code."""

    id: str
    project: str
    sha256: str
    size_bytes: int
    num_files: int
    created_at: str
    uploaded_at: str


class Comparison(TypedDict):
    """A comparison and its table."""

    id: str
    state: Stage
    field: str
    created_at: str
    spec: dict[str, Any]
    rows: list[ComparisonRow]


class ComparisonCheck(TypedDict):
    """The specs as they would be run, in the order of the values: every default filled in; and what to think twice about."""

    specs: list[dict[str, Any]]
    warnings: list[str]


class ComparisonEntry(TypedDict):
    """A comparison in a list, without the table."""

    id: str
    state: Stage
    field: str
    created_at: str
    variants: list[Variant]


class ComparisonRow(TypedDict):
    """One variant of a comparison, with what came of it so far; null: not known, or not yet."""

    value: Any
    job_id: str
    state: State | None
    message: str
    step: int
    total_steps: int | None
    train_loss: float | None
    validation: dict[str, Score]
    samples_per_s: float | None
    sync_time_s: float | None
    sync_bytes: float | None
    health: Health | None


class Event(TypedDict):
    """One thing that happened to a job."""

    seq: int
    at: str
    type: EventType
    attempt: int | None
    rank: int | None
    data: dict[str, Any]


class GroupUsage(TypedDict):
    """What the jobs of one group of a quota use, and how much they may."""

    by: str
    subject: str
    value: str
    used: dict[str, int]
    limits: dict[str, int]


class JobAnswer(TypedDict):
    """A job."""

    id: str
    project: str
    name: str
    state: State
    reason: str
    message: str
    labels: dict[str, str]
    priority: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    progress: Progress
    metrics: dict[str, float]
    world_size: int
    transitions: list[Transition]
    attempts: list[Attempt]
    spec: dict[str, Any]


class LogLine(TypedDict):
    """One line of log."""

    seq: int
    at: str
    rank: int | None
    attempt: int | None
    stream: str
    level: str | None
    message: str


class Metrics(TypedDict):
    """Metric series."""

    series: list[Series]
    is_pruned: bool


class NewToken(TypedDict):
    """A token that was just made, with itself: shown this once."""

    id: str
    name: str
    project: str
    scopes: list[Scope]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    token: str


class Node(TypedDict):
    """A machine of the cluster. Of `resources` (CPU, GPU, and memory in bytes) `free` says what of CPU and GPU is not in use."""

    id: str
    address: str
    is_alive: bool
    resources: dict[str, float]
    free: dict[str, float]


class Progress(TypedDict):
    """How far training is."""

    step: int
    total_steps: int | None
    epoch: float
    samples: int


class Queued(TypedDict):
    """A job that waits, with its place."""

    position: int
    id: str
    name: str
    priority: int
    workers: int
    created_at: str
    reason: str
    message: str


class Room(TypedDict):
    """What all living nodes have together, and what of it is free."""

    total_cpus: float
    total_gpus: int
    free_cpus: float
    free_gpus: int


class Score(TypedDict):
    """A metric on the validation data."""

    last: float
    best: float


class Series(TypedDict):
    """One metric over the steps."""

    name: str
    points: list[list[int | float]]


class Token(TypedDict):
    """A token, without itself."""

    id: str
    name: str
    project: str
    scopes: list[Scope]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class Transition(TypedDict):
    """One change of state."""

    state: State
    reason: str
    message: str
    at: str


class Usage(TypedDict):
    """The groups of every quota."""

    data: list[GroupUsage]


class Variant(TypedDict):
    """One variant in a list of comparisons."""

    value: Any
    job_id: str
    state: State | None
