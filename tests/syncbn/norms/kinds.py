"""Every kind of norm built with the options that it needs, and called with the arguments that it needs. Used by the tests of all kinds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from syncbn import build_norm

NEEDED: dict[str, dict[str, Any]] = {
    "conditional_bn": {"num_classes": 3},
    "domain_bn": {"domains": ("day", "night")},
    "ghost_bn": {"virtual_batch_size": 2},
}


class Called(nn.Module):
    """A norm that takes the input alone: where it needs a condition, classes 0, 1, 2, 0, ..."""

    def __init__(self, kind: str, num_features: int, **options: Any) -> None:
        super().__init__()
        self.norm = build_norm(kind, num_features, **NEEDED.get(kind, {}), **options)
        self.conditional = kind == "conditional_bn"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize."""
        return self.norm(x, torch.arange(x.shape[0]) % 3) if self.conditional else self.norm(x)
