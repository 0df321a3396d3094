"""The job spec: what a user asks for. Owns the fields, their ranges and their contradictions; knows nothing of how they are trained.

Public contract: docs/job-spec.md. `parse_spec` in `worker.contract.validation` is the way in for anything a user wrote.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, StrictBool, StrictInt, field_validator, model_validator

from worker.contract.best import Best, BestSpec, default_metric
from worker.contract.catalogue import AUTO_NORM, MODELS, NORMS, TASKS, Entry
from worker.contract.data import DataSpec
from worker.contract.frozen import Frozen
from worker.contract.names import CODE_PREFIX, is_code, is_of_library
from worker.contract.rules import refuse


def _matching(pattern: str, expected: str, example: str) -> AfterValidator:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise refuse("does not match", expected, f"write it like {example}")
        return text

    return AfterValidator(check)


MAX_WORKERS = 4096
JobName = Annotated[str, _matching(r"[^\x00-\x1f\x7f]{1,128}", "1 to 128 printable characters", "digits-resnet18")]
LabelKey = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", "a label key: 1 to 63 letters, digits, '.', '_', '/' or '-'", "team/vision")
]
LabelValue = Annotated[str, _matching(r"[^\x00-\x1f\x7f]{0,256}", "up to 256 printable characters", "vision")]
CheckpointReference = Annotated[
    str,
    _matching(
        r"job_[0-9A-HJKMNP-TV-Z]{26}/checkpoints/(latest|best|[0-9]{1,15})",
        "JOB_ID/checkpoints/STEP, where STEP is a number, latest or best",
        "job_01J8ZQ4WZ0V5K3T9M2N7R6C1XH/checkpoints/latest",
    ),
]
BundleId = Annotated[
    str,
    _matching(r"code_[0-9A-HJKMNP-TV-Z]{26}", "the id of uploaded code", "code_01J8ZQ4WZ0V5K3T9M2N7R6C1XH"),
]
SgdUnlessNamed = BeforeValidator(lambda value: {"name": "sgd", **value} if isinstance(value, dict) else value)
# YAML 1.1 reads an unquoted `off` as the boolean false; a user who wrote off means off.
OffSwitch = BeforeValidator(lambda value: "off" if value is False else value)
NoneIfOff = BeforeValidator(lambda value: None if value is False or value == "off" else value)


ByName = BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)


def _known(kind: str, table: dict[str, Entry], name: str) -> str:
    if name not in table:
        spelling = f"code:MODULE:NAME, as in code:mypackage.parts:build_{kind}"
        expected = spelling if name.startswith(CODE_PREFIX) else f"one of {', '.join(table)}"
        raise refuse(f"unknown {kind}", expected, f"use {expected}")
    return name


class TaskSpec(Frozen):
    """What is minimized and measured, by name, and its arguments. A name alone may be written without `name`."""

    name: str = "classification"
    args: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return name if is_code(name) else _known("task", TASKS, name)


class ModelSpec(Frozen):
    """The architecture by name, and its arguments."""

    name: str
    args: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return name if is_code(name) or is_of_library(name) else _known("model", MODELS, name)


class NormSpec(Frozen):
    """Which normalization every norm site of the model uses, and what only this kind takes. momentum None: cumulative average."""

    kind: str = "sync_bn"
    args: dict[str, JsonValue] = Field(default_factory=dict)
    momentum: Annotated[float, Field(ge=0, le=1)] | None = 0.1
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    group_size: Literal["all"] | Annotated[StrictInt, Field(ge=1)] = "all"
    placement: Literal["before_activation", "after_activation"] = "before_activation"

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        return kind if kind == AUTO_NORM else _known("norm kind", NORMS, kind)


# The batch size that lr is meant for: the rate is lr times batch_size / lr_batch_size. None: lr as it is.
LrBatchSize = Annotated[StrictInt, Field(ge=1)] | None


class SgdSpec(Frozen):
    """torch.optim.SGD."""

    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    lr_batch_size: LrBatchSize = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    nesterov: StrictBool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise refuse("nesterov needs a momentum", "momentum above 0 where nesterov is true", "set momentum: 0.9 or nesterov: false")
        return self


class AdamWSpec(Frozen):
    """torch.optim.AdamW."""

    name: Literal["adamw"]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_batch_size: LrBatchSize = None
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class ScheduleSpec(Frozen):
    """Learning rate over training: linear warm-up from zero, then constant or half a cosine down to zero."""

    name: Literal["constant", "cosine"] = "constant"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0


NumWorkers = Annotated[StrictInt, Field(ge=1, le=MAX_WORKERS)]


class WorkerRange(Frozen):
    """Any number of workers between the two: as many as there is room for, also while the job trains."""

    min: NumWorkers
    max: NumWorkers


class ResourceSpec(Frozen):
    """What the gang needs. Every worker is one rank; as many as it needs at least start together or none does."""

    workers: NumWorkers | WorkerRange = 1
    gpus_per_worker: Annotated[StrictInt, Field(ge=0, le=1)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0, le=256)] = 1

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min_workers > self.max_workers:
            problem = f"workers.min {self.min_workers} is more than workers.max {self.max_workers}"
            raise refuse(problem, "workers.min of at most workers.max", "exchange them")
        return self

    @property
    def min_workers(self) -> int:
        """With fewer the job does not train."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def max_workers(self) -> int:
        """It takes no more."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    def resized(self, workers: int) -> dict[str, Any]:
        """Return these resources, as a document, after somebody asked for a number of workers: it replaces the number, or `max`."""
        is_elastic = isinstance(self.workers, WorkerRange)
        return self.model_dump(mode="json") | {"workers": {"min": self.min_workers, "max": workers} if is_elastic else workers}


class CheckpointSpec(Frozen):
    """When to write a checkpoint, and which to keep. The last one is always written and kept.

    Those of every_epochs are validated first; those of every_steps come in between without, and are never the best.
    """

    every_epochs: Annotated[StrictInt, Field(ge=1)] = 1
    every_steps: Annotated[StrictInt, Field(ge=1)] | None = None
    keep_last: Annotated[StrictInt, Field(ge=1, le=10_000)] = 3
    keep_best: Best | None = BestSpec(metric="val/accuracy", mode="max")


class RecalibrateSpec(Frozen):
    """Re-estimate the running statistics over the training data after training, before the final evaluation."""

    num_samples: Annotated[StrictInt, Field(ge=1)] = 10_000
    estimator: Literal["exact", "mean_of_batches"] = "exact"
    """Of the population, or the average of the batches' own statistics: `syncbn.recalibrate`."""


ExportFormat = Literal["plain", "folded", "onnx"]


class EmaSpec(Frozen):
    """Exponential moving average of parameters and running statistics, moved after each step; evaluated and saved in place of the model."""

    kind: Literal["ema"]
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999


class SwaSpec(Frozen):
    """Mean of the parameters at the ends of epochs, from the share `start` of the training on; its running statistics are re-estimated."""

    kind: Literal["swa"]
    start: Annotated[float, Field(ge=0, lt=1)] = 0.75


class RetrySpec(Frozen):
    """Budgets: ranks replaced in place, and gangs started again from a checkpoint."""

    recoveries: Annotated[StrictInt, Field(ge=0, le=10_000)] = 10
    restarts: Annotated[StrictInt, Field(ge=0, le=10_000)] = 3


class JobSpec(Frozen):
    """One training job. batch_size is global: over all ranks and accumulation steps."""

    name: JobName
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    task: Annotated[TaskSpec, ByName] = TaskSpec()
    model: ModelSpec
    norm: NormSpec = NormSpec()
    data: DataSpec
    batch_size: Annotated[StrictInt, Field(ge=1, le=2**31)] = 128
    epochs: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    steps: Annotated[StrictInt, Field(ge=0, le=2**40)] | None = None
    """0: a checkpoint of another job is re-estimated, exported or evaluated, and nothing is trained."""
    optimizer: Annotated[SgdSpec | AdamWSpec, Field(discriminator="name"), SgdUnlessNamed] = SgdSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    average: Annotated[Annotated[EmaSpec | SwaSpec, Field(discriminator="kind")] | None, NoneIfOff] = None
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    channels_last: StrictBool = False
    compile: Annotated[Literal["off", "norm", "model"], OffSwitch] = "off"
    accumulate: Annotated[StrictInt, Field(ge=1, le=4096)] = 1
    resources: ResourceSpec = ResourceSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    recalibrate: Annotated[RecalibrateSpec | Literal["off"], OffSwitch] = "off"
    export: Annotated[tuple[ExportFormat, ...], Field(max_length=8)] = ()
    retries: RetrySpec = RetrySpec()
    priority: Annotated[StrictInt, Field(ge=-1000, le=1000)] = 0
    timeout_s: Annotated[float, Field(gt=0)] = 86_400
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=64)
    code: BundleId | None = None
    initialize_from: CheckpointReference | None = None

    @model_validator(mode="before")
    @classmethod
    def _ten_epochs_unless_told(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("epochs") is None and raw.get("steps") is None:
            return {**raw, "epochs": 10}
        return raw

    @model_validator(mode="before")
    @classmethod
    def _best_by_what_the_task_measures(cls, raw: Any) -> Any:
        checkpoint = raw.get("checkpoint", {}) if isinstance(raw, dict) else None
        if not isinstance(checkpoint, dict) or "keep_best" in checkpoint:
            return raw
        task = raw.get("task", "classification")
        name = task.get("name", "classification") if isinstance(task, dict) else task
        return {**raw, "checkpoint": {**checkpoint, "keep_best": default_metric(str(name))}}

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Self:
        if self.steps == 0 and self.initialize_from is None:
            raise refuse("steps: 0 trains nothing", "initialize_from beside steps: 0", "name a checkpoint, or set steps to 1 or more")
        if self.export and self.steps != 0:
            raise refuse("only what is trained already is exported", "steps: 0 beside export", "export a checkpoint of this job afterwards")
        return self

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        workers = self.resources.max_workers
        if self.epochs is not None and self.steps is not None:
            raise refuse("epochs and steps are both set", "one of epochs and steps", "remove one of them")
        if self.batch_size < workers:
            raise refuse(
                f"batch_size {self.batch_size} cannot be split over {workers} workers with at least one sample each",
                f"batch_size of at least {workers}",
                f"use at most {self.batch_size} workers or a batch_size of {workers} or more",
            )
        if self.compile == "model" and self.accumulate > 1:
            raise refuse("compile: model with accumulate compiles anew in every step", "accumulate: 1 for it", "set compile: off")
        if self.norm.group_size != "all" and self.resources.min_workers != workers:
            raise refuse(
                f"norm.group_size {self.norm.group_size} does not divide every number of workers in the range",
                "a fixed number of workers, or group_size: all",
                "use group_size: all",
            )
        if self.norm.group_size != "all" and workers % self.norm.group_size:
            raise refuse(
                f"norm.group_size {self.norm.group_size} does not divide {workers} workers",
                "a divisor of resources.workers, or all",
                "use group_size: all",
            )
        return self
