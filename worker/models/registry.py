"""From the name in a spec to a model. Owns the table; its names are those of the catalogue."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from worker.contract.catalogue import MODELS, CspDarknetArgs, HybridArgs, ResNetArgs, UNetArgs
from worker.contract.names import is_code, is_of_library
from worker.contract.spec import ModelSpec, NormSpec
from worker.data.split import Inputs
from worker.errors import TaskError, blame
from worker.models.cspdarknet import CspDarknet
from worker.models.external import Wanted, build_from_code, build_from_library
from worker.models.hybrid import Hybrid
from worker.models.norms import Norms
from worker.models.resnet import ResNet
from worker.models.sites import Placement
from worker.models.unet import UNet

Builder = Callable[[Any, Inputs, Norms, Placement], nn.Module]


def _resnet(depth: Literal[18, 34, 50]) -> Builder:
    def build(args: ResNetArgs, data: Inputs, norm: Norms, placement: Placement) -> nn.Module:
        _require_images(f"resnet{depth}", data)
        return ResNet(depth, data.image_shape[0], data.num_classes, norm=norm, width=args.width, stem=args.stem, placement=placement)

    return build


def _hybrid(args: HybridArgs, data: Inputs, norm: Norms, placement: Placement) -> nn.Module:
    _require_images("hybrid", data)
    return Hybrid(
        data.image_shape[0],
        data.num_classes,
        norm=norm,
        width=args.width,
        blocks=args.blocks,
        heads=args.heads,
        placement=placement,
    )


def _cspdarknet(args: CspDarknetArgs, data: Inputs, norm: Norms, placement: Placement) -> nn.Module:
    _require_images("cspdarknet", data)
    return CspDarknet(data.image_shape[0], data.num_classes, norm=norm, width=args.width, depth=args.depth, placement=placement)


def _unet(args: UNetArgs, data: Inputs, norm: Norms, placement: Placement) -> nn.Module:
    channels, *space = data.image_shape
    return UNet(len(space), channels, data.num_classes, norm=norm, width=args.width, depth=args.depth, placement=placement)


BUILDERS: Mapping[str, Builder] = {
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    "hybrid": _hybrid,
    "cspdarknet": _cspdarknet,
    "unet": _unet,
}


def build_model(spec: ModelSpec, norm_spec: NormSpec, norm: Norms, data: Inputs, seed: int, *, task: str = "classification") -> nn.Module:
    """Return a model on the CPU, in float32, whose parameters are a function of the seed alone; the global generator stays as it was.

    Args:
        norm: builds the norm sites, and converts those of models that are not built here.
        task: name of the task, for libraries that have one model of a name for each.
    Raises:
        TaskError: the architecture cannot be built for this data, a library is missing, or the user's code raised.
    """
    norm = norm.in_dimensions(len(data.image_shape) - 1)
    with blame(TaskError), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        wanted = Wanted(task, data.image_shape[0], data.num_classes)
        if is_of_library(spec.name):
            return norm.convert(build_from_library(spec.name, spec.args, wanted))
        if is_code(spec.name):
            return norm.convert(build_from_code(spec.name, spec.args, wanted, norm))
        return BUILDERS[spec.name](MODELS[spec.name].args.model_validate(spec.args), data, norm, norm_spec.placement)


def _require_images(name: str, data: Inputs) -> None:
    if len(data.image_shape) != 3:
        raise TaskError(
            f"{name} takes images (C, H, W); the data has samples of shape {data.image_shape}; use unet, or a model of your own"
        )
