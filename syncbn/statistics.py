"""The running statistics of a model: read and summarized per layer.

Owns: reading (`layer_statistics`) and summarizing. Judging is `health.py`, comparing two models `comparison.py`, comparing ranks
`agreement.py`, estimating anew `population.py`.
"""

from __future__ import annotations

import math
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
        """Plain values for JSON: `summary` of the running statistics, or with `vectors` every entry; None for what is not finite."""
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


def _plain(vector: Tensor | None, whole: bool) -> dict[str, float | None] | list[float | None] | None:
    if vector is None:
        return None
    return entries(vector) if whole else summary(vector)


def summary(vector: Tensor) -> dict[str, float | None]:
    """Minimum, maximum and mean; None where an entry is not finite, which JSON could not say either.

    >>> import torch
    >>> summary(torch.tensor([1.0, 2.0, 6.0]))
    {'min': 1.0, 'max': 6.0, 'mean': 3.0}
    """
    wide = vector.double()
    if not wide.isfinite().all():
        return dict.fromkeys(("min", "max", "mean"))
    return {"min": float(wide.min()), "max": float(wide.max()), "mean": float(wide.mean())}


def entries(vector: Tensor) -> list[float | None]:
    """Every entry; None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in vector.tolist()]
