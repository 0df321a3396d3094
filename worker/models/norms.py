"""From the norm section of a spec to what builds the norm sites of a model, and converts those it came with. The kinds are in `syncbn`."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import syncbn
from worker.contract.catalogue import NORMS
from worker.contract.spec import NormSpec

_TAKES_MOMENTUM = frozenset({"sync_bn", "batch_norm", "ghost_bn", "batch_renorm", "switchable"})
_TAKES_GROUP = frozenset({"sync_bn", "batch_renorm", "switchable"})
# Their state is that of a torch.nn.BatchNorm, and in eval mode so is what they compute.
_IS_PLAIN_IN_EVAL = frozenset({"sync_bn", "batch_norm", "ghost_bn", "batch_renorm", "frozen_bn"})

_BATCH_NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AnyBatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  the only common class of the family


@dataclass(frozen=True)
class Norms:
    """Builds norms: call it with a number of channels."""

    spec: NormSpec
    is_training: bool
    """Otherwise all kinds of BatchNorm are plain `torch.nn` layers."""
    group: Any = None
    """The process group that statistics are synchronized over; None for all ranks."""
    dimensions: int = 2
    """Of space, in the images of the job."""

    def __call__(self, channels: int) -> nn.Module:
        """Return one norm."""
        spec = self.spec
        if self._is_plain:
            return _BATCH_NORMS[self.dimensions](channels, spec.eps, spec.momentum)
        options: dict[str, Any] = {"eps": spec.eps, **NORMS[spec.kind].args.model_validate(spec.args).model_dump()}
        if spec.kind in _TAKES_MOMENTUM:
            options["momentum"] = spec.momentum
        if spec.kind in _TAKES_GROUP:
            options["process_group"] = self.group
        return syncbn.build_norm(spec.kind, channels, **options)

    def in_dimensions(self, dimensions: int) -> "Norms":
        """Return the same for images of so many dimensions of space."""
        return replace(self, dimensions=dimensions)

    def convert(self, model: nn.Module) -> nn.Module:
        """Replace every BatchNorm that a model came with by the norm of the spec, whose eps and momentum hold for them too.

        Raises:
            ConversionError: a subclass of BatchNorm with a forward of its own, which the conversion would lose.
        """
        if self._is_plain or self.spec.kind == "sync_bn":
            for layer in model.modules():
                if isinstance(layer, _AnyBatchNorm):
                    layer.eps, layer.momentum = self.spec.eps, self.spec.momentum
            return syncbn.revert_sync_batchnorm(model) if self._is_plain else syncbn.convert_sync_batchnorm(model, self.group)
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
        """Return a norm with a layer's weight and bias, which may be initialized on purpose, as to zero, and with its statistics."""
        new = self(old.num_features)
        new.load_state_dict(old.state_dict(), strict=False)
        return new

    @property
    def _is_plain(self) -> bool:
        """Whether the layers are those of `torch.nn`."""
        return self.spec.kind == "batch_norm" or (not self.is_training and self.spec.kind in _IS_PLAIN_IN_EVAL)


def training_norm(spec: NormSpec, group: Any = None) -> Norms:
    """Return what builds each norm while training; `group` is the process group to synchronize over, None for all ranks."""
    return Norms(spec, is_training=True, group=group)


def inference_norm(spec: NormSpec) -> Norms:
    """Return what builds each norm where there are no ranks: plain `torch.nn.BatchNorm2d`, or 3d, for all kinds of BatchNorm."""
    return Norms(spec, is_training=False)
