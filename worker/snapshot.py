"""What a checkpoint says about a job at one step: the manifest, before the files are written. Owns the health verdict and the versions."""

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version

import torch

import syncbn
from worker.contract.assignment import Assignment
from worker.contract.manifest import Finding, Health, InputEntry, LayerEntry, Manifest
from worker.data.split import Inputs, class_names_of
from worker.sampler import Plan


def draft_manifest(
    assignment: Assignment,
    plan: Plan,
    step: int,
    statistics: Mapping[str, syncbn.LayerStatistics],
    *,
    inputs: Inputs,
    metrics: dict[str, float],
) -> Manifest:
    """Return the manifest of a model with these statistics after `step` steps, complete but for `files`."""
    report = syncbn.check_health(statistics)
    spec = assignment.spec.model_dump(mode="json")
    return Manifest(
        job_id=assignment.job_id,
        attempt=assignment.attempt,
        fence=assignment.fence,
        step=step,
        epoch=plan.epochs_after(step),
        samples=plan.samples_after(step),
        world_size=assignment.world_size,
        created_at=datetime.now(UTC),
        metrics=metrics,
        spec=spec,
        spec_sha256=hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
        versions={"syncbn": version("syncbn"), "torch": str(torch.__version__), "python": platform.python_version()},
        health=Health(
            status="healthy" if report.status == "healthy" else "unhealthy",
            findings=tuple(Finding(layer=finding.layer, code=finding.code, message=finding.message) for finding in report.findings),
        ),
        layers=tuple(
            LayerEntry(name=name, kind=layer.kind, num_channels=layer.num_channels, eps=layer.eps, momentum=layer.momentum)
            for name, layer in statistics.items()
        ),
        inputs=InputEntry(image_shape=tuple(inputs.image_shape), num_classes=inputs.num_classes, class_names=class_names_of(inputs)),
        files={},
    )
