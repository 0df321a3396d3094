"""What the controller and the ranks say to each other: job spec, assignment, events, failures, manifest. Torch-free.

Owns the words and their validation; does nothing. This face re-exports, against the house rule, because it is the one door between
`service` and `worker`.
"""

from worker.contract.advice import advise
from worker.contract.assignment import Assignment
from worker.contract.catalogue import AUTO, DATASETS, MODELS, NORMS, TASKS
from worker.contract.events import Drain, EventType, RankEvent, Reading
from worker.contract.failure import FailureCode, JobFailure
from worker.contract.manifest import (
    FileEntry,
    Finding,
    Health,
    LayerEntry,
    Manifest,
    best_step,
    checkpoint_name,
    checkpoints_directory,
)
from worker.contract.problem import Problem
from worker.contract.spec import JobSpec
from worker.contract.telemetry import LayerRecord, TelemetryRecord
from worker.contract.validation import SpecError, parse_spec

__all__ = [
    "AUTO",
    "DATASETS",
    "MODELS",
    "NORMS",
    "TASKS",
    "Assignment",
    "Drain",
    "EventType",
    "FailureCode",
    "FileEntry",
    "Finding",
    "Health",
    "JobFailure",
    "JobSpec",
    "LayerEntry",
    "LayerRecord",
    "Manifest",
    "Problem",
    "RankEvent",
    "Reading",
    "SpecError",
    "TelemetryRecord",
    "advise",
    "best_step",
    "checkpoint_name",
    "checkpoints_directory",
    "parse_spec",
]
