"""What the service answers about checkpoints and their statistics, as types: the dictionaries that the client returns are of these.

Generated from the OpenAPI document by `make format`: change the shapes in service/api.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Against(TypedDict):
    """The other checkpoint."""

    job_id: str
    step: int


class Checkpoint(TypedDict):
    """A checkpoint in a list."""

    step: int
    epoch: float
    created_at: str
    metrics: dict[str, float]
    health: Health
    size_bytes: int
    files: list[CheckpointFile]
    is_best: bool
    is_latest: bool
    pinned: bool
    damaged: list[str]


class CheckpointFile(TypedDict):
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str


class Difference(TypedDict):
    """This checkpoint minus the other."""

    running_mean: Vector
    running_var: Vector


class ExportEntry(TypedDict):
    """How a file in another format was made and verified."""

    format: str
    max_difference: float
    num_samples: int


class FileEntry(TypedDict):
    """One file of a checkpoint."""

    size: int
    sha256: str


class Finding(TypedDict):
    """One thing noticed about one layer's statistics."""

    layer: str
    code: str
    message: str


class Health(TypedDict):
    """The verdict over all layers at the time of writing. An unhealthy checkpoint is never `best`."""

    status: Literal["healthy", "unhealthy"]
    findings: NotRequired[list[Finding]]


class InputEntry(TypedDict):
    """What the model takes and tells apart."""

    image_shape: list[int]
    num_classes: int
    class_names: NotRequired[list[str] | None]


class LayerEntry(TypedDict):
    """One layer with running statistics; the vectors themselves are in model.safetensors under `{name}.running_mean` and so on."""

    name: str
    kind: str
    num_channels: int
    eps: float
    momentum: float | None


class LayerFinding(TypedDict):
    """What is wrong with a layer."""

    code: str
    message: str


class LayerRecord(TypedDict):
    """One layer in one watched step. None: not measured, or no finite number."""

    name: str
    num_ranks: int
    num_calls: int
    num_reductions: int
    bytes_sent: int
    time_s: float
    num_values: float | None
    mean_drift: float | None
    variance_drift: float | None
    between_to_within: float | None
    effective_num_values: float | None


class LayerStatistics(TypedDict):
    """One layer. The last three are there where another checkpoint was asked for, and None where it has no such layer."""

    name: str
    kind: str
    num_channels: int
    num_batches_tracked: int | None
    eps: float
    momentum: float | None
    running_mean: Vector
    running_var: Vector
    health: list[LayerFinding]
    difference: NotRequired[Difference | None]
    mean_shift: NotRequired[float | None]
    distance: NotRequired[float | None]


class LayerTelemetry(TypedDict):
    """One layer: its newest record, and its drift at each of the answer's steps."""

    name: str
    newest: LayerRecord
    mean_drift: list[float | None]
    variance_drift: list[float | None]


class Manifest(TypedDict):
    """What a checkpoint holds and how to know that it is whole."""

    format_version: NotRequired[int]
    job_id: str
    attempt: int
    fence: int
    step: int
    epoch: float
    samples: int
    world_size: int
    created_at: str
    metrics: dict[str, float]
    spec: dict[str, Any]
    spec_sha256: str
    versions: dict[str, str]
    health: Health
    layers: list[LayerEntry]
    files: dict[str, FileEntry]
    statistics: NotRequired[FileEntry | None]
    inputs: NotRequired[InputEntry | None]
    exports: NotRequired[dict[str, ExportEntry]]
    writer: NotRequired[str]


class Prediction(TypedDict):
    """A class, by its number and, where the data set has names, by its name, and how probable it is."""

    label: int
    name: str | None
    probability: float


class Predictions(TypedDict):
    """What a checkpoint makes of an image: the most probable classes, the first the most."""

    step: int
    predictions: list[Prediction]


class Statistics(TypedDict):
    """The running statistics of a checkpoint, layer by layer."""

    step: int
    health: Health
    against: NotRequired[Against | None]
    layers: list[LayerStatistics]


class Telemetry(TypedDict):
    """What the normalization layers did on the watched steps: a grid of layers by steps."""

    steps: list[int]
    layers: list[LayerTelemetry]


class Vector(TypedDict):
    """A vector over channels: in summary, and whole where one layer was asked for. None: not finite."""

    min: float | None
    max: float | None
    mean: float | None
    values: NotRequired[list[float | None]]
