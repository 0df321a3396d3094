"""`BatchNorm`: torch's local batch normalization for inputs whose number of dimensions is not known beforehand. Owns that class alone."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from syncbn.errors import BatchTooSmallError, ShapeError
from syncbn.shapes import values_per_channel


@final
class BatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  torch and others find batch norms by this class
    """torch's local batch normalization for any number of dimensions; same arguments, same state dict.

    An empty batch gives an empty result and moves no running statistics. One value per channel has no variance to divide by: in
    training that is an error, as in torch, which here says what to do.

    >>> import torch
    >>> BatchNorm(3)(torch.randn(4, 3, 5)).shape
    torch.Size([4, 3, 5])
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ShapeError(
                f"expected at least 2D input (got {x.dim()}D input of shape {tuple(x.shape)}): pass (N, C) or (N, C, *spatial)"
            )
        takes_batch_statistics = self.training or self.running_mean is None
        if takes_batch_statistics and values_per_channel(x) == 1:
            raise BatchTooSmallError(
                f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: local batch_norm takes its "
                "statistics from this rank's batch alone; use a larger batch per rank, sync_bn or group_norm, or call eval()"
            )
