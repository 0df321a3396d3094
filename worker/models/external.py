"""Models that are not built here: of torchvision, timm and transformers, and of the user. Owns how each is asked; downloads no weights.

Their BatchNorm layers are converted afterwards, by `worker.models.norms`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from worker.errors import TaskError
from worker.models.sites import NormFactory
from worker.user_code import call


@dataclass(frozen=True)
class Wanted:
    """What the job needs of a model."""

    task: str
    in_channels: int
    num_classes: int


def build_from_library(name: str, args: Mapping[str, Any], wanted: Wanted) -> nn.Module:
    """Return a freshly initialized model by a name of the form LIBRARY:MODEL.

    Raises:
        TaskError: the library is not installed or cannot be imported.
    """
    library, _, model_name = name.partition(":")
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise TaskError(
            f"model {name} needs {library}, which cannot be imported here: {error}; expected it on every node; pip install {library}"
        ) from error
    model = _LIBRARIES[library](module, model_name, args, wanted)
    model.register_forward_hook(_only_logits)
    return model


def build_from_code(name: str, args: Mapping[str, Any], wanted: Wanted, norm: NormFactory) -> nn.Module:
    """Return the model that a function or class of the user's makes.

    Raises:
        TaskError: it cannot be found or called, raises, or returns no module.
    """
    model = call(name, args, {"num_classes": wanted.num_classes, "in_channels": wanted.in_channels, "norm": norm})
    if not isinstance(model, nn.Module):
        raise TaskError(f"{name} returned {type(model).__name__}; expected a torch.nn.Module; return the model")
    return model


def _torchvision(module: Any, name: str, args: Mapping[str, Any], wanted: Wanted) -> nn.Module:
    if wanted.in_channels != 3:
        raise TaskError(
            f"torchvision:{name} takes images of 3 channels; the data has {wanted.in_channels}; use timm, or data of 3 channels"
        )
    weights = {"weights": None} | ({"weights_backbone": None} if wanted.task == "segmentation" else {})
    model: nn.Module = module.models.get_model(name, **weights, num_classes=wanted.num_classes, **args)
    return model


def _timm(module: Any, name: str, args: Mapping[str, Any], wanted: Wanted) -> nn.Module:
    model: nn.Module = module.create_model(name, pretrained=False, num_classes=wanted.num_classes, in_chans=wanted.in_channels, **args)
    return model


def _transformers(module: Any, name: str, args: Mapping[str, Any], wanted: Wanted) -> nn.Module:
    """Return a model of the architecture `name`, as in `AutoConfig.for_model`; `args` are the fields of its configuration."""
    config = module.AutoConfig.for_model(name, num_labels=wanted.num_classes, num_channels=wanted.in_channels, **args)
    kind = module.AutoModelForSemanticSegmentation if wanted.task == "segmentation" else module.AutoModelForImageClassification
    model: nn.Module = kind.from_config(config)
    return model


_LIBRARIES: dict[str, Callable[[Any, str, Mapping[str, Any], Wanted], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}


def _only_logits(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """Take the logits out of what these libraries wrap them in. A hook, because a wrapper would change the names of the parameters.

    An auxiliary classifier of torchvision's is left out of the loss. Ask for a model without (`aux_logits: false`, `aux_loss: false`),
    because every parameter must have a gradient.
    """
    if isinstance(outputs, Mapping) and "out" in outputs:
        return outputs["out"]
    return getattr(outputs, "logits", outputs)
