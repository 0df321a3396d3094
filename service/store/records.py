"""The values that the store hands out. Frozen; what they mean is said field by field."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from service.scopes import Scope
from service.states import State
from worker.contract import EventType, JobSpec, Manifest


@dataclass(frozen=True)
class Progress:
    """How far training is."""

    step: int = 0
    """Completed optimizer steps."""
    total_steps: int | None = None
    """Unknown until the first step."""
    epoch: float = 0.0
    samples: int = 0


@dataclass(frozen=True)
class Job:
    """One job as it stands now."""

    id: str
    project: str
    """Whose it is: tokens of other projects do not see it."""
    name: str
    state: State
    reason: str
    """Machine-readable: why the job is in this state."""
    message: str
    """The same for a person; may be empty."""
    labels: dict[str, str]
    priority: int
    created_at: datetime
    started_at: datetime | None
    """When it first ran."""
    finished_at: datetime | None
    progress: Progress
    metrics: dict[str, float]
    """The latest value of each."""
    world_size: int
    """Ranks of the current or last attempt, as many as there are now; before the first, what the spec asks for at least."""
    fence: int
    attempt: int
    """Number of the current or last attempt, 0 before the first."""
    spec_json: str = field(repr=False)
    """The resolved spec as it was accepted. Text: most readers hand it on as it is."""
    last_seq: int
    """Number of the newest event."""
    edition: int
    """Grows with every change that a user makes (PATCH); the ETag."""
    submitter: str = ""
    """Name of the token that it was submitted with."""
    ran_us: int = 0
    """Microseconds that its earlier attempts trained, recoveries and the saving of a pause included."""
    running_since: datetime | None = None
    """When the present attempt began to train; None where none does."""
    resize_to: int | None = None
    """Ranks that its controller is to give it now, where that is another number."""
    resize_why: str | None = None
    """Why, machine-readable; also where a user has asked for more and waits for room."""

    @cached_property
    def document(self) -> dict[str, Any]:
        """The resolved spec as plain values."""
        found: dict[str, Any] = json.loads(self.spec_json)
        return found

    @cached_property
    def spec(self) -> JobSpec:
        """The resolved spec as a value."""
        return JobSpec.model_validate(self.document)

    def ran_s(self, now: datetime) -> float:
        """Return how long it has run in all: neither in the queue nor paused."""
        present_s = 0.0 if self.running_since is None else (now - self.running_since).total_seconds()
        return self.ran_us / 1e6 + present_s


@dataclass(frozen=True)
class Attempt:
    """One gang's life. `fence` grows with every attempt of the job; whatever carries an older one is refused."""

    job_id: str
    number: int
    fence: int
    reason: str
    """Why it was begun."""
    started_at: datetime
    finished_at: datetime | None
    world_size: int
    """Ranks that it began with."""


@dataclass(frozen=True)
class Transition:
    """One change of state."""

    state: State
    reason: str
    message: str
    at: datetime


@dataclass(frozen=True)
class Event:
    """One thing that happened to a job. `seq` counts from 1 without gaps within the job."""

    seq: int
    at: datetime
    type: EventType
    attempt: int | None
    rank: int | None
    """None where the controller speaks."""
    data: dict[str, Any]

    @property
    def message(self) -> str:
        """What a line of log says. Its words are those of a job's author: whoever shows it escapes it."""
        return str(self.data.get("message", ""))


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint, as its manifest describes it."""

    job_id: str
    step: int
    manifest: Manifest = field(repr=False)


@dataclass(frozen=True)
class Variant:
    """One job of a comparison: the value that it has in the compared field."""

    value: Any
    job_id: str
    state: State | None
    """None where the job has been deleted."""


@dataclass(frozen=True)
class Comparison:
    """Jobs that were submitted together, alike but for one field of their specs."""

    id: str
    project: str
    """Whose it is, and whose the jobs are."""
    field: str
    """A dotted path into the spec."""
    document: dict[str, Any]
    """The spec that they have in common, as it was submitted."""
    created_at: datetime
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Token:
    """One API token. The token itself is nowhere but with its owner."""

    id: str
    name: str
    project: str
    """What it may see: the jobs and the code of this project. With the scope admin, of all."""
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything, in every project."""
        return Scope.ADMIN in self.scopes

    def is_live(self, now: datetime) -> bool:
        """Return whether it is admitted."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def may(self, scope: Scope) -> bool:
        """Return whether it may do what needs the scope."""
        return self.is_admin or scope in self.scopes

    def sees(self, project: str) -> bool:
        """Return whether what belongs to the project is there for it."""
        return self.is_admin or project == self.project


@dataclass(frozen=True)
class Bundle:
    """Uploaded code: an archive in the storage, named by its digest, that belongs to a project."""

    id: str
    project: str
    sha256: str
    """Of the archive as it is stored, which depends on nothing but names and contents of the files."""
    size_bytes: int
    num_files: int
    created_at: datetime
    uploaded_at: datetime
    """When it was sent last."""


@dataclass(frozen=True)
class IdempotencyClaim:
    """A client's promise that two requests of a project are one: the key it chose, and a digest of what it asked for."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class Lease:
    """The right to look after something until it runs out. Whoever takes it next has a higher term."""

    name: str
    holder: str
    term: int
