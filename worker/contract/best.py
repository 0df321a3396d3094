"""Which checkpoint of a job is the best: by which metric, and in which direction. Pure; worker and service both ask here."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from worker.contract.frozen import Frozen
from worker.contract.rules import refuse

Mode = Literal["min", "max"]

# What each built-in task makes of an evaluation. A name that ends in a slash goes on with a class.
METRICS: dict[str, dict[str, Mode]] = {
    "classification": {"val/loss": "min", "val/accuracy": "max", "val/top5": "max"},
    "segmentation": {
        "val/loss": "min",
        "val/accuracy": "max",
        "val/miou": "max",
        "val/dice": "max",
        "val/iou/": "max",
        "val/dice/": "max",
    },
}
_DEFAULTS = {"classification": "val/accuracy", "segmentation": "val/miou"}


class BestSpec(Frozen):
    """A metric of the evaluation, and whether its largest or its smallest value is the best."""

    metric: Annotated[str, Field(max_length=128)]
    mode: Mode

    @field_validator("metric")
    @classmethod
    def _is_of_the_evaluation(cls, metric: str) -> str:
        if not metric.startswith("val/"):
            raise refuse("does not begin with val/", "a metric of the evaluation, such as val/loss", "begin it with val/")
        return metric


def known_mode(metric: str, task: str | None = None) -> Mode | None:
    """Return the direction of a metric of a built-in task, or of any; None where it is unknown.

    >>> known_mode("val/loss"), known_mode("val/iou/liver"), known_mode("val/mae"), known_mode("val/miou", "classification")
    ('min', 'max', None, None)
    """
    known: dict[str, Mode] = METRICS[task] if task else {name: mode for table in METRICS.values() for name, mode in table.items()}
    head, slash, _ = metric.removeprefix("val/").partition("/")
    return known.get(f"val/{head}{slash}")


def default_metric(task: str) -> str:
    """Return the metric that decides where the user names none: the task's main one; the loss for a task of the user's own."""
    return _DEFAULTS.get(task, "val/loss")


def _with_mode(value: Any) -> Any:
    """Read a metric written by its name alone."""
    if not isinstance(value, str):
        return value
    mode = known_mode(value)
    if mode is None:
        known = ", ".join(sorted({f"{name}CLASS" if name.endswith("/") else name for table in METRICS.values() for name in table}))
        raise refuse(
            "it is not known whether more or less of it is better",
            f"a metric with its direction, or one of {known}",
            "name the direction: keep_best: {metric: val/NAME, mode: min}",
        )
    return {"metric": value, "mode": mode}


Best = Annotated[BestSpec, BeforeValidator(_with_mode)]
