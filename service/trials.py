"""`norm.kind: auto`: which short trials are run, and what they decide. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.comparison_table import Row, is_lower_better
from service.states import State
from worker.contract import JobSpec
from worker.contract.catalogue import AutoNormArgs

MAX_STEPS: Final = 200


@dataclass(frozen=True)
class Choice:
    """The kind that a job gets, and why."""

    kind: str
    why: str


def kinds(spec: JobSpec) -> tuple[str, ...]:
    """Return the kinds that are tried, in this order. The first is chosen where no trial says anything; the earlier of equals."""
    return AutoNormArgs.model_validate(spec.norm.args).kinds


def trial_document(spec: JobSpec) -> dict[str, Any]:
    """Return what the trials of a job have in common: the job, cut short, with one evaluation and one checkpoint at its end."""
    document = spec.model_dump(mode="json")
    steps = MAX_STEPS if spec.steps is None else min(MAX_STEPS, spec.steps)
    checkpoint = document["checkpoint"] | {"every_epochs": MAX_STEPS, "keep_last": 1}
    norm = document["norm"] | {"args": {}}
    name = f"{spec.name} trial"
    return document | {"name": name, "norm": norm, "steps": steps, "epochs": None, "recalibrate": "off", "checkpoint": checkpoint}


def metric_of(spec: JobSpec) -> str:
    """Return the metric that decides: the one by which the job's best checkpoint is kept."""
    best = spec.checkpoint.keep_best
    return "val/loss" if best is None else best.metric


def choose(spec: JobSpec, rows: Sequence[Row]) -> Choice:
    """Return the kind whose trial ended with the best value of the job's metric.

    Args:
        spec: the job's.
        rows: of its trials, all of which have ended, in the order of `kinds`.
    """
    metric = metric_of(spec)
    sign = -1.0 if is_lower_better(metric, spec.checkpoint.keep_best) else 1.0
    scores = {row.value: row.validation[metric].last for row in rows if row.state is State.SUCCEEDED and metric in row.validation}
    failed = [f"{row.value} {row.state or 'deleted'}" for row in rows if row.value not in scores]
    if not scores:
        first = kinds(spec)[0]
        return Choice(first, f"{first}, as no trial gave {metric}: {', '.join(failed)}")
    winner = max(scores, key=lambda kind: sign * scores[kind])
    others = [f"{score:.4g} {kind}" for kind, score in scores.items() if kind != winner] + failed
    steps = max(row.step for row in rows)
    return Choice(winner, f"{winner}: {metric} {scores[winner]:.4g} against {', '.join(others)} after {steps} steps")
