"""The whole state of training as named tensors and plain numbers, and back. Owns the names inside a checkpoint's files.

model.safetensors       parameters and buffers under their own names; loads strictly into the same architecture with plain norms. Where
                        training averages the model, it is the average, which is what was evaluated
training.safetensors    optimizer.{PARAMETER}.{NAME}, generator.{cpu|cuda}.{RANK}; beside an average, model.{NAME}: what is trained
training.json           step, world_size, optimizer: {PARAMETER: {NAME: number}}, scaler: {NAME: number}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worker.checkpoint import Loaded
from worker.errors import CheckpointMismatchError
from worker.ranks import Ranks
from worker.training import Trainer


@dataclass(frozen=True)
class State:
    """Copies on the CPU: what training changes next does not change them."""

    model: dict[str, Tensor]
    training: dict[str, Tensor]
    scalars: dict[str, Any]


def capture(trainer: Trainer, step: int, ranks: Ranks) -> State | None:
    """Return the state after `step` steps on rank 0, None elsewhere: all ranks hold the same, but for the generators.

    Collectives: one all_gather of the generator state per kind of device. Every rank must call.
    """
    generators = _gather_generators(ranks)
    if ranks.rank != 0:
        return None
    model = {name: _copy(tensor) for name, tensor in trainer.evaluated.state_dict().items()}
    tensors, numbers = _optimizer_state(trainer)
    if trainer.average is not None:
        tensors |= {f"model.{name}": _copy(tensor) for name, tensor in trainer.model.state_dict().items()}
    scalars = {"step": step, "world_size": ranks.world_size, "optimizer": numbers, "scaler": trainer.scaler.state_dict()}
    return State(model, tensors | generators, scalars)


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


def restore_training(trainer: Trainer, loaded: Loaded, ranks: Ranks) -> int:
    """Load optimizer, scaler and generators; return the number of completed steps. The model is loaded by `restore_model` before.

    Beside an average, what was loaded before is the average, and the model that is trained is loaded here.
    """
    if trainer.average is not None:
        prefix = "model."
        trained = {name.removeprefix(prefix): tensor for name, tensor in loaded.training.items() if name.startswith(prefix)}
        restore_model(trainer.model, trained, f"of {loaded.manifest.job_id} with an average")
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
    # With another number of ranks the old generators belong to nobody; the new ones, seeded at the start, go on.
    if loaded.scalars["world_size"] == ranks.world_size:
        _restore_generators(loaded.training, ranks)
    return int(loaded.scalars["step"])


def seed_generators(seed: int, rank: int, attempt: int) -> None:
    """Seed PyTorch's generators, which layers like dropout draw from: different on every rank, and in every attempt."""
    word = np.random.SeedSequence([seed, rank, attempt]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(word) >> 1)


def _optimizer_state(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    names = [name for name, _ in trainer.model.named_parameters()]
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for index, entries in trainer.optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{names[index]}.{key}"] = _copy(value)
            elif value is not None:
                numbers.setdefault(names[index], {})[key] = value
    return tensors, numbers


def _gather_generators(ranks: Ranks) -> dict[str, Tensor]:
    found = {f"generator.cpu.{rank}": state for rank, state in enumerate(ranks.gather(torch.get_rng_state()))}
    if ranks.device.type == "cuda":
        own = torch.cuda.get_rng_state(ranks.device)
        found |= {f"generator.cuda.{rank}": state for rank, state in enumerate(ranks.gather(own))}
    return found


def _restore_generators(tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    torch.set_rng_state(tensors[f"generator.cpu.{ranks.rank}"])
    own = tensors.get(f"generator.cuda.{ranks.rank}")
    if own is not None and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(own, ranks.device)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
