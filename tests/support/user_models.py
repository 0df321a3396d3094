"""What a user might bring: models for `code:` names, which know nothing of this project."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Branches(nn.Module):
    """Two convolutions side by side, then a classifier: a few layers, with a choice of order between two norms."""

    def __init__(self, in_channels: int, num_classes: int, norm: Any, width: int = 4) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(in_channels, width, 3, 1, 1), norm(width), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(in_channels, width, 3, 1, 1), norm(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, num_classes)."""
        return self.head((self.left(x) + self.right(x)).mean((2, 3)))


def plain(num_classes: int, in_channels: int = 3, width: int = 4) -> nn.Module:
    """A model of torch's own layers, as torchvision builds them; it takes no norm."""
    bn = nn.BatchNorm2d(width, eps=1e-3)
    nn.init.zeros_(bn.weight)
    trained = nn.BatchNorm2d(width)
    trained.running_mean.fill_(7.0)
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3),
        bn,
        nn.ReLU(),
        nn.Conv2d(width, width, 3),
        trained,
        nn.Flatten(2),
        _Mean(),
        nn.Linear(width, num_classes),
    )


def noting(num_classes: int, directory: str, in_channels: int = 3) -> nn.Module:
    """A plain model of somebody who is used to torchrun: writes down what its variables say, a file a rank."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    said = {name: os.environ[name] for name in names}
    Path(directory, f"rank-{said['RANK']}.json").write_text(json.dumps(said))
    return plain(num_classes, in_channels)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


def shrinking(num_classes: int, in_channels: int = 3) -> nn.Module:
    """A plain model that changes a parameter in its own forward, behind everybody's back."""
    return _Shrinking(*plain(num_classes, in_channels))


class _Shrinking(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        self[0].weight.data.mul_(0.99)
        return super().forward(x)


def broken(num_classes: int) -> nn.Module:
    """Raise while the model is built."""
    raise ValueError(f"no model for {num_classes} classes")


class Failing(nn.Module):
    """Raise inside a layer of torch's, while training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(7, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Fail: the shapes do not fit."""
        return self.head(x)


def no_model(num_classes: int) -> int:
    """Return something else."""
    return num_classes


ANSWER = 42
