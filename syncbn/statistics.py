"""The running statistics of a model: read and summarized per layer.

Owns: reading (`layer_statistics`). Judging is `health.py`, comparing ranks is `agreement.py`, estimating anew is `population.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerStatistics:
    """What one normalization layer knows, as copies on the CPU.

    Invariants: vectors have num_channels entries; running_mean and running_var are both given or both None.
    """

    name: str
    kind: str  # the class's name
    num_channels: int
    eps: float
    momentum: float | None
    num_batches_tracked: int | None
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def to_dict(self, *, vectors: bool = False) -> dict[str, Any]:
        """Plain values for JSON: min, max and mean of the running statistics, or with `vectors` every entry."""
        return {
            "name": self.name,
            "kind": self.kind,
            "num_channels": self.num_channels,
            "num_batches_tracked": self.num_batches_tracked,
            "eps": self.eps,
            "momentum": self.momentum,
            "running_mean": _plain(self.running_mean, vectors),
            "running_var": _plain(self.running_var, vectors),
        }


def layer_statistics(module: nn.Module) -> dict[str, LayerStatistics]:
    """The statistics of every batch normalization layer of a model, by name, in the order of the modules.

    Args:
        module: a model, or a single layer (whose name is then ""). A shared layer appears once. Layers without running statistics are
            listed too, with None.
    Returns:
        Copies on the CPU: they do not change when training goes on. On a GPU this waits for the device.

    >>> statistics = layer_statistics(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    >>> [(name, s.kind, s.num_channels, s.num_batches_tracked) for name, s in statistics.items()]
    [('1', 'BatchNorm2d', 8, 0)]
    """
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))  # noqa: SLF001
    return {name: _statistics_of(name, layer) for name, layer in layers}


def _statistics_of(name: str, layer: nn.modules.batchnorm._BatchNorm) -> LayerStatistics:
    tracked = layer.num_batches_tracked
    return LayerStatistics(
        name=name,
        kind=type(layer).__name__,
        num_channels=layer.num_features,
        eps=layer.eps,
        momentum=layer.momentum,
        num_batches_tracked=None if tracked is None else int(tracked),
        running_mean=_copy(layer.running_mean),
        running_var=_copy(layer.running_var),
        weight=_copy(layer.weight),
        bias=_copy(layer.bias),
    )


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().cpu()


def _plain(vector: Tensor | None, whole: bool) -> dict[str, float] | list[float] | None:
    if vector is None:
        return None
    if whole:
        return [float(value) for value in vector]
    wide = vector.double()
    return {"min": float(wide.min()), "max": float(wide.max()), "mean": float(wide.mean())}
