"""From a job and one of its checkpoints to the spec of another job: trained further, re-estimated, exported. Pure.

Where a job came from is its `initialize_from`, by number: `latest` and `best` may be others by the time it starts.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from service.errors import InvalidError
from service.paths import PathError, assign
from service.store.records import Job
from worker.contract import Problem

MAX_NAME: Final = 128
# Nothing is trained: the average was saved as the model, statistics come of all ranks, and nothing is worth compiling for.
_WITHOUT_TRAINING: Final[dict[str, Any]] = {"steps": 0, "epochs": None, "average": "off", "compile": "off", "recalibrate": "off"}


def fork(job: Job, step: int) -> dict[str, Any]:
    """Return the spec of a job that trains on from a checkpoint's weights."""
    return _from(job, step, "fork") | {"export": []}


def recalibration(job: Job, step: int, num_samples: int, estimator: str) -> dict[str, Any]:
    """Return the spec of a job that re-estimates a checkpoint's running statistics, on as many workers as trained it."""
    changes = {"recalibrate": {"num_samples": num_samples, "estimator": estimator}, "export": []}
    return _ungrouped(_from(job, step, "recalibrated")) | _WITHOUT_TRAINING | changes


def export(job: Job, step: int, formats: Sequence[str]) -> dict[str, Any]:
    """Return the spec of a job that brings a checkpoint into other formats, on one worker."""
    document = _ungrouped(_from(job, step, "exported"))
    return document | _WITHOUT_TRAINING | {"export": list(formats), "resources": document["resources"] | {"workers": 1}}


def changed(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec with other values at dotted paths. A new length of training, in epochs or in steps, takes the place of the old one.

    Raises:
        InvalidError: a path does not lead into the spec.
    """
    result = deepcopy(dict(document))
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if changes.get(one) is not None and other not in changes:
            result[other] = None
    for path, value in changes.items():
        try:
            assign(result, path, value)
        except PathError as error:
            expected = "a dotted path into a job spec"
            problem = Problem(loc=f"set.{path}", value=str(error), expected=expected, remedy="use one like optimizer.lr")
            raise InvalidError.of([problem]) from error
    return result


def _from(job: Job, step: int, what: str) -> dict[str, Any]:
    origin = {"initialize_from": f"{job.id}/checkpoints/{step}", "labels": job.labels, "priority": job.priority}
    return job.document | {"name": f"{job.name[: MAX_NAME - len(what) - 1]}-{what}"} | origin


def _ungrouped(document: dict[str, Any]) -> dict[str, Any]:
    """Return a spec in which all workers are one group, which any number of them can be."""
    return document | {"norm": document["norm"] | {"group_size": "all"}}
