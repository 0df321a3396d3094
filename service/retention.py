"""How long things of ended jobs are kept. Pure: the operator's words, and what they mean; dropping it is `service.pruning`'s."""

from collections.abc import Collection, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from worker.contract import Manifest, best_step
from worker.contract.best import BestSpec

Days = Annotated[int, Field(ge=0, le=36_500)] | None


class Retention(BaseModel):
    """Days after which things are dropped, counted from the end of their job; what is left out is kept for ever."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    logs_days: Days = None
    events_days: Days = None
    """All events, log lines among them; the history of states stays with the job."""
    metrics_days: Days = None
    """The series; the last value of each stays with the job."""
    checkpoints_days: Days = None
    """Of the job's checkpoints all but the newest, the newest healthy one, the best and those that are pinned."""
    jobs_days: Days = None
    """The job with everything that it has, its checkpoints too, unless one is pinned or a job that has not ended starts from one."""
    code_days: Days = None
    """Uploaded code that no job names, counted from when it was uploaded last."""


def steps_to_drop(manifests: Sequence[Manifest], best: BestSpec | None, pinned: Collection[int]) -> list[int]:
    """Return which of an ended job's checkpoints nothing keeps, oldest first.

    Args:
        manifests: of all of them, in any order.
        best: by which metric one is the best.
        pinned: steps that somebody wants to keep.
    """
    steps = sorted(manifest.step for manifest in manifests)
    healthy = [manifest.step for manifest in manifests if manifest.health.status == "healthy"]
    kept = {*steps[-1:], max(healthy, default=None), best_step(manifests, best), *pinned}
    return [step for step in steps if step not in kept]
