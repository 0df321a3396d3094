"""Where the channels are: shapes, memory layouts and accumulation types that the inner loops share. Pure."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncbn.errors import ShapeError


class Centred(NamedTuple):
    """A batch with a value per channel subtracted: x = values + origin. `values` is the accumulation dtype and nobody else's tensor."""

    values: Tensor
    origin: Tensor  # (C,), float64


Affine = tuple[Tensor, Tensor]
"""Scale and bias per channel, float64."""

Factors = tuple[Tensor, Tensor, Tensor]
"""a, b, c of the input gradient a dy + b (x - mean) + c, per channel, float64."""


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype that elementwise arithmetic on x is done in: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def reduced_dims(x: Tensor) -> tuple[int, ...]:
    """All dimensions but the channels'."""
    return (0, *range(2, x.dim()))


def along_channels(vector_C: Tensor, x: Tensor) -> Tensor:
    """A vector (C,) shaped to broadcast over x (N, C, *spatial)."""
    return vector_C.view(1, -1, *([1] * (x.dim() - 2)))


def values_per_channel(x: Tensor) -> int:
    """How many values each channel of x has."""
    return x.numel() // max(x.shape[1], 1)


def aligned_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The caller's mask, broadcast to (N, 1, *spatial).

    Raises:
        ShapeError: not boolean, or not broadcastable to (N, *spatial).
    """
    target = (x.shape[0], *x.shape[2:])
    if mask.dtype != torch.bool:
        raise ShapeError(f"mask has dtype {mask.dtype}: expected torch.bool, True where the input counts; convert it with .bool()")
    try:
        return mask.expand(target).unsqueeze(1)
    except RuntimeError as error:
        raise ShapeError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to {target}: expected the input's shape {tuple(x.shape)} without "
            "its channels; drop the channel dimension"
        ) from error


def require_channels(x: Tensor, num_features: int) -> None:
    """Refuse what is not (N, C) or (N, C, *spatial) with C = num_features.

    Raises:
        ShapeError: too few dimensions, or another number of channels.
    """
    if x.dim() < 2:
        raise ShapeError(f"expected at least 2D input (got {x.dim()}D input of shape {tuple(x.shape)}): pass (N, C) or (N, C, *spatial)")
    if x.shape[1] != num_features:
        raise ShapeError(
            f"input of shape {tuple(x.shape)} has {x.shape[1]} channels: expected {num_features} in dimension 1, the layer's num_features; "
            "check the order of dimensions or build the layer with the right number"
        )
