"""The batch normalization layers of a model, whoever wrote them, and what they are called with.

Owns: which modules are of the family, and their arguments. Does not own what is done with them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Layer = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  the family's only common class


def tracking_layers(model: nn.Module) -> dict[str, Layer]:
    """The layers that keep running statistics, by name; a shared one once.

    >>> list(tracking_layers(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, track_running_stats=False))))
    ['0']
    """
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Layer) and layer.running_mean is not None}


def synchronizes(layer: nn.Module) -> bool:
    """Whether a layer is one of this library's that reduce over their `process_group`.

    >>> synchronizes(nn.BatchNorm2d(3)), synchronizes(nn.SyncBatchNorm(3))
    (False, False)
    """
    is_ours = isinstance(layer, Layer) and not isinstance(layer, nn.SyncBatchNorm) and "process_group" in layer.__dict__
    return is_ours and bool(getattr(layer, "synchronized", True))


def is_chosen_kind(layer: nn.Module) -> bool:
    """Whether a layer is one of this library's other kinds of batch norm, chosen on purpose: conversions leave it what it is.

    >>> from syncbn import build_norm
    >>> is_chosen_kind(build_norm("ghost_bn", 3)), is_chosen_kind(build_norm("sync_bn", 3))
    (True, False)
    """
    return bool(getattr(type(layer), "is_chosen_kind", False))


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The input and the mask (None without) among the arguments of a layer's forward, torch's layers included."""
    given: dict[str, Any] = dict(zip(("x", "mask"), args, strict=False)) | kwargs
    return given["x"] if "x" in given else given["input"], given.get("mask")
