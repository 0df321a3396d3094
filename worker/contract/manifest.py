"""The checkpoint on disk: its names and its manifest. A directory with a manifest is whole; one without is nothing.

jobs/{job_id}/checkpoints/step-00000120/
    manifest.json  model.safetensors  training.safetensors  training.json
"""

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from pydantic import Field

from worker.contract.best import BestSpec
from worker.contract.frozen import Frozen

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1

_CHECKPOINT_NAME: Final = re.compile(r"step-([0-9]{8,20})")


def checkpoints_directory(job_id: str) -> PurePosixPath:
    """Return where a job's checkpoints lie, relative to the storage root."""
    return PurePosixPath("jobs") / job_id / "checkpoints"


def pins_directory(job_id: str) -> PurePosixPath:
    """Return where a job's pins lie: an empty file for each pinned checkpoint, of the checkpoint's name."""
    return PurePosixPath("jobs") / job_id / "pins"


def checkpoint_name(step: int) -> str:
    """Return the directory name of the checkpoint at a step.

    >>> checkpoint_name(120)
    'step-00000120'
    """
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's directory name, None where it is no such name.

    >>> step_of('step-00000120'), step_of('.tmp-step-00000120-1')
    (120, None)
    """
    match = _CHECKPOINT_NAME.fullmatch(name)
    return None if match is None or checkpoint_name(int(match[1])) != name else int(match[1])


class FileEntry(Frozen):
    """One file of a checkpoint."""

    size: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class LayerEntry(Frozen):
    """One layer with running statistics; the vectors themselves are in model.safetensors under `{name}.running_mean` and so on."""

    name: str
    kind: str
    num_channels: int
    eps: float
    momentum: float | None


class Finding(Frozen):
    """One thing noticed about one layer's statistics."""

    layer: str
    code: str
    message: str


class Health(Frozen):
    """The verdict over all layers at the time of writing. An unhealthy checkpoint is never `best`."""

    status: Literal["healthy", "unhealthy"]
    findings: tuple[Finding, ...] = ()


class InputEntry(Frozen):
    """What the model takes and tells apart."""

    image_shape: tuple[int, ...]
    """Channels, then the size in each dimension, after the transforms."""
    num_classes: int
    class_names: tuple[str, ...] | None = None
    """In the order of the classes; None where the data set knows no names, and in checkpoints of before."""


class ExportEntry(Frozen):
    """How a file in another format was made and verified."""

    format: str
    max_difference: float
    """Largest difference between its outputs and those of the trained model, relative to the largest output."""
    num_samples: int
    """Held-out samples that the outputs were compared on."""


class Manifest(Frozen):
    """What a checkpoint holds and how to know that it is whole."""

    format_version: int = FORMAT_VERSION
    job_id: str
    attempt: int
    fence: int
    step: int
    """Completed optimizer steps."""
    epoch: float
    """Completed epochs; a fraction in mid-epoch."""
    samples: int
    """Training samples seen, over all ranks."""
    world_size: int
    created_at: datetime
    metrics: dict[str, float]
    spec: dict[str, Any]
    spec_sha256: str
    versions: dict[str, str]
    health: Health
    layers: tuple[LayerEntry, ...]
    files: dict[str, FileEntry]
    statistics: FileEntry | None = None
    """Size and digest of the running statistics alone, as a safetensors file of their own: what `?include=statistics` sends. None where
    there are none, and in checkpoints of before."""
    inputs: InputEntry | None = None
    """None in checkpoints of before."""
    exports: dict[str, ExportEntry] = Field(default_factory=dict)
    """Those of the files that are exports, by name."""
    writer: str = ""
    """In an object store, a word that tells apart two writers of one fence; empty elsewhere."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together, the manifest not counted."""
        return sum(entry.size for entry in self.files.values())


def best_step(manifests: Iterable[Manifest], best: BestSpec | None) -> int | None:
    """Return the step of the best healthy checkpoint, the newest of equals: what the worker keeps and the service calls `best`.

    Args:
        manifests: of one job, in any order.
        best: by which metric; None: nothing is best.
    Returns:
        None where no healthy one has the metric.
    """
    if best is None:
        return None
    sign = -1 if best.mode == "min" else 1
    rated = [
        (sign * manifest.metrics[best.metric], manifest.step)
        for manifest in manifests
        if best.metric in manifest.metrics and manifest.health.status == "healthy"
    ]
    return max(rated)[1] if rated else None
