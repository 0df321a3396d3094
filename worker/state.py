"""The whole state of training as named tensors and plain numbers, and back. Owns the names inside a checkpoint's files.

model.safetensors       parameters and buffers under their own names; loads strictly into the same architecture with plain norms. Where
                        training averages the model, it is the average, which is what was evaluated
training.safetensors    optimizer.{PARAMETER}.{NAME}; beside an average, model.{NAME}: what is trained
training.json           step, world_size, optimizer: {PARAMETER: {NAME: number}}, scaler: {NAME: number}; reports: the last metrics, which
                        a job that goes on from here says again where they are not on record

No generator states: what is drawn is a function of (seed, step, rank), see `worker.draws`.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from worker.checkpoint import Loaded
from worker.copying import Copying
from worker.errors import CheckpointMismatchError
from worker.training import Trainer


@dataclass(frozen=True)
class State:
    """Named tensors and plain numbers."""

    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    scalars: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Both kinds of tensors."""
        return {"model": self.model, "training": self.training}


def present(trainer: Trainer, step: int, world_size: int) -> State:
    """Return the state after `step` steps, as it is until the next update. All ranks hold the same.

    Its tensors are the trainer's own where only updates change them: the trained parameters, their averages, and what the optimizer keeps.
    What a forward may change as well is a copy on the same device: buffers, and parameters that are not trained. They are few.

    Args:
        trainer: whose state.
        step: completed steps.
        world_size: number of ranks.
    """
    trained = {name for name, parameter in trainer.model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    tensors, numbers = _optimizer_state(trainer)
    if trainer.average is not None:
        tensors |= {f"model.{name}": tensor for name, tensor in _until_update(trainer.model, trained).items()}
    scalars = {"step": step, "world_size": world_size, "optimizer": numbers, "scaler": trainer.scaler.state_dict()}
    return State(_until_update(trainer.evaluated, trained), tensors, scalars)


def capture(trainer: Trainer, step: int, world_size: int) -> State:
    """Return contiguous copies on the CPU of what `present` returns: what training changes next does not change them."""
    state = present(trainer, step, world_size)
    copies = Copying().begin(step, state.tensors).take()
    return State(copies["model"], copies["training"], state.scalars)


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


def _until_update(model: nn.Module, trained: AbstractSet[str]) -> dict[str, Tensor]:
    return {name: tensor if name in trained else tensor.clone() for name, tensor in model.state_dict().items()}


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
