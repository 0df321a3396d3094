"""`BatchNorm`: torch's local batch normalization for inputs whose number of dimensions is not known beforehand. Owns that class alone."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from syncbn.errors import ShapeError


@final
class BatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  torch and others find batch norms by this class
    """torch's local batch normalization for any number of dimensions; same arguments, same state dict.

    >>> import torch
    >>> BatchNorm(3)(torch.randn(4, 3, 5)).shape
    torch.Size([4, 3, 5])
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ShapeError(
                f"expected at least 2D input (got {x.dim()}D input of shape {tuple(x.shape)}): pass (N, C) or (N, C, *spatial)"
            )
