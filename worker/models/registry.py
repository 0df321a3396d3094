"""From the name in a spec to a model. Owns the table; its names are those of the catalogue."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from worker.contract.catalogue import MODELS, ResNetArgs
from worker.contract.spec import ModelSpec, NormSpec
from worker.data.split import Split
from worker.errors import TaskError, blame
from worker.models.resnet import NormFactory, ResNet18


def _resnet18(args: ResNetArgs, data: Split, norm: NormFactory, norm_spec: NormSpec) -> nn.Module:
    return ResNet18(data.image_shape[0], data.num_classes, norm=norm, width=args.width, stem=args.stem, placement=norm_spec.placement)


BUILDERS: dict[str, Callable[[Any, Split, NormFactory, NormSpec], nn.Module]] = {
    "resnet18": _resnet18,
}


def build_model(spec: ModelSpec, norm_spec: NormSpec, norm: NormFactory, data: Split, seed: int) -> nn.Module:
    """Return a model on the CPU, in float32, whose parameters are a function of the seed alone; the global generator stays as it was.

    Raises:
        TaskError: the architecture cannot be built for this data.
    """
    with blame(TaskError), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return BUILDERS[spec.name](MODELS[spec.name].args.model_validate(spec.args), data, norm, norm_spec)
