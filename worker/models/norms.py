"""From the norm section of a spec to what builds the norm sites of a model, and converts those it came with. The kinds are in `syncbn`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import syncbn
from worker.contract.spec import NormSpec

RUNNING_STATISTICS_KINDS = frozenset({"sync_bn", "batch_norm"})

_BATCH_NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AnyBatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  the only common class of the family


@dataclass(frozen=True)
class Norms:
    """Builds norms: call it with a number of channels."""

    spec: NormSpec
    is_training: bool
    """Whether sync_bn is synchronized; both kinds of BatchNorm are plain `torch.nn` layers otherwise."""
    group: Any = None
    """The process group that sync_bn synchronizes over; None for all ranks."""
    dimensions: int = 2
    """Of space, in the images of the job."""

    def __call__(self, channels: int) -> nn.Module:
        """Return one norm."""
        if self.is_training and self.spec.kind == "sync_bn":
            return syncbn.SyncBatchNorm(channels, self.spec.eps, self.spec.momentum, process_group=self.group)
        return LOCAL[self.spec.kind](self, channels)

    def in_dimensions(self, dimensions: int) -> "Norms":
        """Return the same for images of so many dimensions of space."""
        return replace(self, dimensions=dimensions)

    def convert(self, model: nn.Module) -> nn.Module:
        """Replace every BatchNorm that a model came with by the norm of the spec, whose eps and momentum hold for them too.

        Raises:
            ConversionError: a subclass of BatchNorm with a forward of its own, which the conversion would lose.
        """
        if self.spec.kind in RUNNING_STATISTICS_KINDS:
            for layer in model.modules():
                if isinstance(layer, _AnyBatchNorm):
                    layer.eps, layer.momentum = self.spec.eps, self.spec.momentum
            is_synchronized = self.is_training and self.spec.kind == "sync_bn"
            return syncbn.convert_sync_batchnorm(model, self.group) if is_synchronized else syncbn.revert_sync_batchnorm(model)
        # Through the library's conversion first, because it knows what must not be replaced, and shared layers.
        syncbn.convert_sync_batchnorm(model)
        replacements: dict[int, nn.Module] = {}
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):  # noqa: SLF001  named_children hides second references
                if isinstance(child, syncbn.SyncBatchNorm):
                    if id(child) not in replacements:
                        replacements[id(child)] = self._in_place_of(child)
                    parent._modules[name] = replacements[id(child)]  # noqa: SLF001
        return model

    def _in_place_of(self, old: syncbn.SyncBatchNorm) -> nn.Module:
        """Return a norm with the weight and bias of a layer, which may be initialized on purpose, as to zero at the end of a block."""
        new = self(old.num_features)
        own = {name: value for name, value in old.state_dict().items() if name in {"weight", "bias"}}
        new.load_state_dict(own, strict=False)
        return new


def training_norm(spec: NormSpec, group: Any = None) -> Norms:
    """Return what builds each norm while training; `group` is the process group that sync_bn synchronizes over, None for all ranks."""
    return Norms(spec, is_training=True, group=group)


def inference_norm(spec: NormSpec) -> Norms:
    """Return what builds each norm where there are no ranks: plain `torch.nn.BatchNorm2d`, or 3d, for both kinds of BatchNorm."""
    return Norms(spec, is_training=False)


def _batch_norm(norms: Norms, channels: int) -> nn.Module:
    return _BATCH_NORMS[norms.dimensions](channels, norms.spec.eps, norms.spec.momentum)


def _built(norms: Norms, channels: int) -> nn.Module:
    return syncbn.build_norm(norms.spec.kind, channels, eps=norms.spec.eps)


LOCAL: dict[str, Callable[[Norms, int], nn.Module]] = {
    "sync_bn": _batch_norm,
    "batch_norm": _batch_norm,
    "group_norm": _built,
    "layer_norm": _built,
    "instance_norm": _built,
}
