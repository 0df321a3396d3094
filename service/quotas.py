"""How much the jobs of one label, token or project may hold at once, and what they hold. Pure; the file is read in `service.policy`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.retention import Retention

Limit = Annotated[int, Field(ge=0)] | None
Stored = Mapping["Quota", Mapping[str, int]]
"""By quota and group, the bytes of the checkpoints of all jobs."""


class Owned(Protocol):
    """What says whose a job is."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels, which the user writes."""

    @property
    def project(self) -> str:
        """The project of its token."""

    @property
    def submitter(self) -> str:
        """The name of its token."""


@dataclass(frozen=True)
class Owner:
    """Whose a job would be that is not there yet."""

    labels: Mapping[str, str]
    project: str
    submitter: str


class Quota(BaseModel):
    """Limits for all the jobs together that have `label` with the value `value`; without `value`, for each value by itself.

    With `by`, the same for the jobs of a project, or for those submitted with tokens of one name. A limit that is left out is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    by: Literal["label", "project", "token"] = "label"
    label: Annotated[str, Field(max_length=63)] = ""
    value: str | None = None
    running_jobs: Limit = None
    workers: Limit = None
    gpus: Limit = None
    queued_jobs: Limit = None
    storage_bytes: Limit = None

    @model_validator(mode="after")
    def _label_goes_with_by(self) -> Self:
        if (self.by == "label") != bool(self.label):
            raise ValueError(
                f'by = "{self.by}" and label = "{self.label}" do not go together: name a label, or write by = "project" or "token"'
            )
        return self

    @property
    def subject(self) -> str:
        """What the quota is by: the label's name, `project` or `token`."""
        return self.label or self.by

    def group_of(self, job: Owned) -> str | None:
        """Return the value whose jobs share the limits with a job; None where the quota is not about it."""
        value = {"label": job.labels.get(self.label), "project": job.project, "token": job.submitter}[self.by]
        return value if self.value in {None, value} else None


class Policy(BaseModel):
    """What the operator decides: about the queue, and about how long things are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    preempt: bool = False
    """Pause running jobs to make room for one of higher priority."""
    grow_every_s: Annotated[float, Field(ge=0)] = 60.0
    """How often at most an elastic job is given room that has become free."""
    quotas: Annotated[tuple[Quota, ...], Field(strict=False)] = ()
    retention: Retention = Retention()


@dataclass
class Account:
    """What one group holds while a plan is made."""

    quota: Quota
    group: str
    jobs: int = 0
    workers: int = 0
    gpus: int = 0
    storage_bytes: int = 0
    """Of the checkpoints of all its jobs, ended ones too."""
    is_closed: bool = False
    """A job before the one at hand waits for this quota, so that nobody behind it may take from it."""

    def charge(self, workers: int, gpus_per_worker: int, *, jobs: int = 1) -> None:
        """Count a job as running; with `jobs` 0, more workers of one that does."""
        self.jobs += jobs
        self.workers += workers
        self.gpus += workers * gpus_per_worker

    def left(self, most: int, gpus_per_worker: int, *, jobs: int = 1) -> int:
        """Return how many workers, up to `most`, one more job may have; with `jobs` 0, how many more one that runs may have."""
        if self.is_closed or self._has_enough_jobs(self.jobs + jobs) or (jobs and self._is_full):
            return 0
        return _within(self.quota, most, gpus_per_worker, self.workers, self.gpus)

    def most_ever(self, most: int, gpus_per_worker: int) -> int:
        """Return how many workers, up to `most`, a job may have that is alone."""
        return 0 if self._has_enough_jobs(1) else _within(self.quota, most, gpus_per_worker, 0, 0)

    def why(self, workers: int, gpus_per_worker: int, *, is_alone: bool = False) -> str:
        """Say what keeps a job of so many workers from starting now, or for good where it would not even start alone."""
        name = f"quota {self.quota.subject}={self.group}"
        if self.is_closed and not is_alone:
            return f"{name}: a job before it waits for the same quota"
        if self._is_full and not is_alone:
            return f"{name}: {self.storage_bytes} of {self.quota.storage_bytes} storage_bytes in use; delete checkpoints or jobs"
        asked = {"running_jobs": 1, "workers": workers, "gpus": workers * gpus_per_worker}
        used = dict.fromkeys(asked, 0) if is_alone else {"running_jobs": self.jobs, "workers": self.workers, "gpus": self.gpus}
        for what, amount in asked.items():
            limit = getattr(self.quota, what)
            if limit is not None and amount and used[what] + amount > limit:
                return f"{name}: {used[what]} of {limit} {what} in use, needs {amount}"
        return name

    def _has_enough_jobs(self, jobs: int) -> bool:
        return self.quota.running_jobs is not None and jobs > self.quota.running_jobs

    @property
    def _is_full(self) -> bool:
        return self.quota.storage_bytes is not None and self.storage_bytes >= self.quota.storage_bytes


class Accounts:
    """The accounts of every group."""

    def __init__(self, quotas: Sequence[Quota], stored: Stored) -> None:
        self._quotas = tuple(enumerate(quotas))
        self._stored = stored
        self._accounts: dict[tuple[int, str], Account] = {}

    def of(self, job: Owned) -> list[Account]:
        """Return the accounts that a job is charged to."""
        found = []
        for index, quota in self._quotas:
            group = quota.group_of(job)
            if group is not None:
                account = self._accounts.get((index, group))
                if account is None:
                    stored = self._stored.get(quota, {}).get(group, 0)
                    account = self._accounts[index, group] = Account(quota, group, storage_bytes=stored)
                found.append(account)
        return found


def _within(quota: Quota, most: int, gpus_per_worker: int, workers: int, gpus: int) -> int:
    if quota.workers is not None:
        most = min(most, quota.workers - workers)
    if quota.gpus is not None and gpus_per_worker:
        most = min(most, (quota.gpus - gpus) // gpus_per_worker)
    return max(most, 0)
