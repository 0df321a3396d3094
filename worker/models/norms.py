"""From the norm section of a spec to a factory for the norm sites of a model. The kinds themselves are in `syncbn`."""

from collections.abc import Callable
from typing import Any

from torch import nn

import syncbn
from worker.contract.spec import NormSpec
from worker.models.resnet import NormFactory

RUNNING_STATISTICS_KINDS = frozenset({"sync_bn", "batch_norm"})


def training_norm(spec: NormSpec, group: Any = None) -> NormFactory:
    """Return what builds each norm while training; `group` is the process group that sync_bn synchronizes over, None for all ranks."""
    if spec.kind == "sync_bn":
        return lambda channels: syncbn.SyncBatchNorm(channels, spec.eps, spec.momentum, process_group=group)
    return inference_norm(spec)


def inference_norm(spec: NormSpec) -> NormFactory:
    """Return what builds each norm where there are no ranks: plain `torch.nn.BatchNorm2d` for both kinds of BatchNorm."""
    return LOCAL[spec.kind](spec)


def _batch_norm(spec: NormSpec) -> NormFactory:
    return lambda channels: nn.BatchNorm2d(channels, spec.eps, spec.momentum)


def _built(spec: NormSpec) -> NormFactory:
    return lambda channels: syncbn.build_norm(spec.kind, channels, eps=spec.eps)


LOCAL: dict[str, Callable[[NormSpec], NormFactory]] = {
    "sync_bn": _batch_norm,
    "batch_norm": _batch_norm,
    "group_norm": _built,
    "layer_norm": _built,
    "instance_norm": _built,
}
