"""Load a checkpoint into a model of plain PyTorch layers and predict the held-out samples one by one.

    python -m worker.predict CHECKPOINT_DIR [--samples N] [--json]

Owns the command. Shows what a checkpoint promises: verified digests, a strict load into `torch.nn.BatchNorm2d`, no process group, batches
of one sample. Exit code 0; 1 when the checkpoint cannot be used; 2 for wrong usage.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from worker.checkpoint import MODEL_FILE, verify
from worker.contract.validation import parse_spec
from worker.data.registry import build_data
from worker.data.split import Split
from worker.errors import WorkerError
from worker.models.norms import Norms, inference_norm
from worker.models.registry import build_model
from worker.state import restore_model
from worker.tasks.registry import build_task
from worker.tasks.task import Task
from worker.training import PARAMETER_DTYPES

SHOWN_SAMPLES = 8


@dataclass(frozen=True)
class Prediction:
    """One held-out sample: its index in the test split, what the model says, and what it is."""

    index: int
    predicted: int
    label: int


@dataclass(frozen=True)
class Report:
    """The predictions of one checkpoint."""

    num_samples: int
    metrics: Mapping[str, float]
    """`loss` and what the task measures."""
    norm_class: str
    samples: tuple[Prediction, ...]
    """Empty where a sample has more than one label."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.predict", description="Predict held-out samples one by one from a checkpoint.")
    parser.add_argument("directory", type=Path, help="a checkpoint: the directory that holds manifest.json")
    parser.add_argument("--samples", type=_positive, default=None, help="how many samples; default: the whole test split")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        report = predict(options.directory, options.samples)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command prints
        return 1
    print(json.dumps(asdict(report)) if options.json else _table(report))  # noqa: T201 - a command prints
    return 0


def predict(directory: Path, num_samples: int | None = None) -> Report:
    """Verify a checkpoint, load it strictly into plain layers, and predict test samples, each as a batch of its own.

    Args:
        directory: holds manifest.json.
        num_samples: how many, from the first on; None for the whole test split.
    Raises:
        CheckpointCorruptError: a digest is wrong.
        CheckpointMismatchError: the file does not load strictly.
    """
    manifest = verify(directory)
    spec = parse_spec(manifest.spec)
    data = build_data(spec.data, spec.seed)
    task, norm = build_task(spec.task, data.train), inference_norm(spec.norm)
    model = build_model(spec.model, spec.norm, norm, data.train, spec.seed, task=spec.task.name)
    model.to(PARAMETER_DTYPES[spec.precision])
    restore_model(model, safetensors.torch.load_file(directory / MODEL_FILE), str(directory))
    count = min(num_samples or data.test.num_samples, data.test.num_samples)
    samples, metrics = _predict(model.eval(), task, data.test, count)
    return Report(count, metrics, _norm_class(model, norm.in_dimensions(len(data.train.image_shape) - 1)), samples)


@torch.inference_mode()
def _predict(model: nn.Module, task: Task, data: Split, count: int) -> tuple[tuple[Prediction, ...], dict[str, float]]:
    dtype = next(model.parameters()).dtype
    loss, sums, found = 0.0, None, []
    for index in range(count):
        images, y = (torch.as_tensor(part) for part in data.batch(np.array([index]), 0))
        outputs = model(images.to(dtype))
        loss += float(task.losses(outputs, y).sum())
        sums = task.sums(outputs, y).double() + (0 if sums is None else sums)
        if y.numel() == 1 and isinstance(outputs, torch.Tensor) and outputs.dim() == 2:
            found.append(Prediction(index, int(outputs.argmax()), int(y)))
    metrics = task.metrics([] if sums is None else sums.tolist(), count)
    return tuple(found), {"loss": loss / count, **metrics}


def _norm_class(model: nn.Module, norm: Norms) -> str:
    """Return the class of the model's norms, as far as it has some of the kind that was asked for."""
    wanted = type(norm(8))
    return next((type(module).__name__ for module in model.modules() if isinstance(module, wanted)), "no norm of the kind")


def _table(report: Report) -> str:
    lines = [f"sample {sample.index:4}   predicted {sample.predicted}   label {sample.label}" for sample in report.samples[:SHOWN_SAMPLES]]
    shown = ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
    return "\n".join([*lines, f"{report.num_samples} samples, one by one, with {report.norm_class}: {shown}"])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{number} is not positive")
    return number


if __name__ == "__main__":
    sys.exit(main())
