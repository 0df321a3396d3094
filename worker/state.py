"""The whole state of training as named tensors and plain numbers, and back. Owns the names inside a checkpoint's files.

model.safetensors       parameters and buffers under their own names; loads strictly into the same architecture with plain norms. Where
                        training averages the model, it is the average, which is what was evaluated
training.safetensors    optimizer.{PARAMETER}.{NAME}; beside an average, model.{NAME}: what is trained
training.json           step, world_size, optimizer: {PARAMETER: {NAME: number}}, scaler: {NAME: number}

No generator states: what is drawn is a function of (seed, step, rank), see `worker.draws`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.checkpoint import Loaded
from worker.errors import CheckpointMismatchError
from worker.training import Trainer


@dataclass(frozen=True)
class State:
    """Copies on the CPU: what training changes next does not change them."""

    model: dict[str, Tensor]
    training: dict[str, Tensor]
    scalars: dict[str, Any]


class Buffers:
    """Memory for copies of the state, used again by every checkpoint of a job.

    Writing to memory that a process has for the first time takes 2.6 times as long as writing to memory that it had (docs/benchmarks.md).
    Copies from a GPU go to page-locked memory, all under way at once.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    def copy(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return contiguous copies on the CPU. Those of the same kind and names that were returned before change too."""
        copies = {name: self._buffer((kind, name), tensor.detach()) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            copies[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _buffer(self, name: tuple[str, str], tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._kept[name] = kept
        return kept


def capture(trainer: Trainer, step: int, world_size: int, buffers: Buffers | None = None) -> State:
    """Return the state after `step` steps. All ranks hold the same.

    Args:
        trainer: what to copy.
        step: completed steps.
        world_size: number of ranks.
        buffers: memory of earlier states, which are overwritten; None for memory of its own.
    """
    tensors, numbers = _optimizer_state(trainer)
    if trainer.average is not None:
        tensors |= {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    buffers = buffers or Buffers()
    model, training = buffers.copy("model", trainer.evaluated.state_dict()), buffers.copy("training", tensors)
    scalars = {"step": step, "world_size": world_size, "optimizer": numbers, "scaler": trainer.scaler.state_dict()}
    return State(model, training, scalars)


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load parameters and buffers.

    Raises:
        CheckpointMismatchError: names or shapes differ from the model's.
    """
    try:
        model.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise CheckpointMismatchError(
            f"checkpoint {origin} does not fit the model of this job: {error}; use the same model and norm"
        ) from error


def restore_training(trainer: Trainer, loaded: Loaded | State) -> int:
    """Load optimizer and scaler; return the number of completed steps. The model is loaded by `restore_model` before.

    Beside an average, what was loaded before is the average, and the model that is trained is loaded here.
    """
    if trainer.average is not None:
        prefix = "model."
        trained = {name.removeprefix(prefix): tensor for name, tensor in loaded.training.items() if name.startswith(prefix)}
        restore_model(trainer.model, trained, "with an average")
    names = [name for name, _ in trainer.model.named_parameters()]
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(names):
        prefix = f"optimizer.{name}."
        entries = {key.removeprefix(prefix): tensor for key, tensor in loaded.training.items() if key.startswith(prefix)}
        entries |= loaded.scalars["optimizer"].get(name, {})
        if entries:
            state[index] = entries
    trainer.optimizer.load_state_dict({"state": state, "param_groups": trainer.optimizer.state_dict()["param_groups"]})
    trainer.scaler.load_state_dict(loaded.scalars["scaler"])
    return int(loaded.scalars["step"])


def _optimizer_state(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    names = [name for name, _ in trainer.model.named_parameters()]
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for index, entries in trainer.optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{names[index]}.{key}"] = value
            elif value is not None:
                numbers.setdefault(names[index], {})[key] = value
    return tensors, numbers
