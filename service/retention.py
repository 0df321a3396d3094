"""How long things of ended jobs are kept. Pure: the operator's words; what is dropped and how is `service.pruning`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Days = Annotated[int, Field(ge=0, le=36_500)] | None


class Retention(BaseModel):
    """Days after which things are dropped, counted from the end of their job; what is left out is kept for ever."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    logs_days: Days = None
    events_days: Days = None
    """All events, log lines among them; the history of states stays with the job."""
    metrics_days: Days = None
    """The series; the last value of each stays with the job."""
    jobs_days: Days = None
    """The job with everything that it has, its checkpoints too, unless one is pinned or a job that has not ended starts from one."""
    code_days: Days = None
    """Uploaded code that no job names, counted from when it was uploaded last."""
