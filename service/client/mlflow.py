"""A job as a run of MLflow: its spec as parameters, what it measured, how it ended. Loads mlflow, an optional extra, only where it is used.

Mirroring again goes on where the last time ended: the run carries the job's id, and the number of the last event, as tags.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from service.client.answers import Event
from service.client.errors import MissingExtra
from service.client.history import flat, points
from service.client.routes import Json
from service.states import TERMINAL

JOB_TAG, SEQ_TAG = "syncbn.job_id", "syncbn.last_event"
# What the protocol takes in one request.
_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE_CHARS = 1000, 100, 6000
_STATUS: Final = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class Mirror:
    """The run of one job at one MLflow, made where there is none yet.

    Args:
        tracking_uri: Default: MLflow's own, MLFLOW_TRACKING_URI.

    Raises:
        MissingExtra: mlflow is not installed.
    """

    def __init__(self, job: Json, experiment: str, tracking_uri: str | None) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise MissingExtra("mirroring to MLflow", "mlflow-skinny", "mlflow") from error
        self._client: Any = MlflowClient(tracking_uri=tracking_uri)
        known = self._client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else self._client.create_experiment(experiment)
        found = self._client.search_runs([place], f"tags.`{JOB_TAG}` = '{job['id']}'", max_results=1)
        if found:
            self.run_id, tags = str(found[0].info.run_id), found[0].data.tags
        else:
            tags = {JOB_TAG: job["id"], SEQ_TAG: "0", **{f"label.{key}": value for key, value in job["labels"].items()}}
            self.run_id = str(self._client.create_run(place, run_name=job["name"], tags=tags).info.run_id)
            self._log_spec(job["spec"])
        self.after = str(tags[SEQ_TAG])
        """The number of the last event that is there."""

    def add(self, events: Sequence[Event], job: Json) -> None:
        """Log what events of type `metrics`, those after `after`, measured; and how the job ended, if it has."""
        from mlflow.entities import Metric

        measured = [Metric(_key(point.name), point.value, int(point.at_s * 1000), point.step) for point in points(events)]
        for start in range(0, len(measured), _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=measured[start : start + _MAX_METRICS])
        if events:
            self.after = str(events[-1]["seq"])
            self._client.set_tag(self.run_id, SEQ_TAG, self.after)
        self._client.update_run(self.run_id, status=_STATUS[job["state"]] if job["state"] in TERMINAL else "RUNNING")

    def _log_spec(self, spec: Json) -> None:
        from mlflow.entities import Param

        params = [Param(_key(name), text[:_MAX_VALUE_CHARS]) for name, text in flat(spec).items()]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _MAX_PARAMS])


def _key(name: str) -> str:
    """Return a name with nothing in it that MLflow refuses.

    >>> _key("val/iou/left:lung")
    'val/iou/left_lung'
    """
    return re.sub(r"[^\w\-. /]", "_", name)
