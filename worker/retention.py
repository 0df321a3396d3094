"""Which checkpoints to delete and which is the best. Pure."""

from collections.abc import Mapping
from typing import Literal

from worker.contract.manifest import Manifest
from worker.contract.spec import CheckpointSpec

BestMetric = Literal["val/accuracy", "val/loss"]


def best_step(manifests: Mapping[int, Manifest], metric: BestMetric) -> int | None:
    """Return the step of the best healthy checkpoint, the newest of equals; None where no healthy one has the metric."""
    sign = -1 if metric == "val/loss" else 1
    ranked = [
        (sign * manifest.metrics[metric], step)
        for step, manifest in manifests.items()
        if manifest.health.status == "healthy" and metric in manifest.metrics
    ]
    return max(ranked)[1] if ranked else None


def steps_to_prune(manifests: Mapping[int, Manifest], spec: CheckpointSpec) -> list[int]:
    """Return the steps that the rule does not keep, oldest first: not among the newest `keep_last`, and not the best."""
    steps = sorted(manifests)
    kept: set[int | None] = set(steps[-spec.keep_last :])
    if spec.keep_best is not None:
        kept.add(best_step(manifests, spec.keep_best))
    return [step for step in steps if step not in kept]
