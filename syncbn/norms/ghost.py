"""`GhostBatchNorm`: statistics of virtual batches, smaller than the rank's own. Owns that class alone."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.errors import BatchTooSmallError, OptionError
from syncbn.running import averaging_factor
from syncbn.shapes import require_channels, values_per_channel


@final
class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  torch and others find batch norms by this class
    """Batch normalization in which each virtual batch of a rank's batch is normalized by its own statistics.

        y_v = (x_v - mean_v) / sqrt(var_v + eps) * weight + bias        v = 1 .. max(1, N // virtual_batch_size)        (var_v biased)

    A large batch then has the noise of a small one, which is what the method is for. The batch is cut into runs of samples whose sizes
    differ by at most one and are at least virtual_batch_size (a batch smaller than that stays whole), so that no small remainder gets
    statistics of its own. Running statistics take in one virtual batch after the other, and num_batches_tracked counts them.

    In eval mode: the running statistics, as torch.nn.BatchNorm. The state dict is the same, too.

    Args:
        num_features: C.
        virtual_batch_size: samples per virtual batch, at least 1 (2 for input without space).
        eps, momentum, affine, device, dtype: as torch.nn.BatchNorm. The momentum is that of a virtual batch.
    Shape: (N, C) or (N, C, *spatial) -> the same. N may be 0.

    Collectives: none; running statistics differ between ranks, as with local batch normalization.
    Source: Hoffer, Hubara, Soudry 2017, "Train longer, generalize better", algorithm 1. Deviation: the remainder, see above.

    >>> layer = GhostBatchNorm(3, virtual_batch_size=8)
    >>> layer(torch.randn(35, 3, 5)).shape, int(layer.num_batches_tracked)
    (torch.Size([35, 3, 5]), 4)
    """

    is_chosen_kind = True

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        if not isinstance(virtual_batch_size, int) or virtual_batch_size < 1:
            raise OptionError(
                f"virtual_batch_size {virtual_batch_size!r} is not a positive integer: expected a number of samples, such as 32"
            )
        self.virtual_batch_size = virtual_batch_size

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial).

        Raises:
            ShapeError: no such shape.
            BatchTooSmallError: in training, a virtual batch has one value per channel.
        """
        require_channels(x, self.num_features)
        if not self.training:
            return self._normalize(x, training=self.running_mean is None, momentum=0.0)
        parts_V = x.tensor_split(max(1, x.shape[0] // self.virtual_batch_size))
        if values_per_channel(parts_V[-1]) == 1:  # the last one is the smallest
            raise BatchTooSmallError(
                f"Expected more than 1 value per channel when training, got {len(parts_V)} virtual batches with 1 in the last (input "
                f"{tuple(x.shape)}, virtual_batch_size {self.virtual_batch_size}): its "
                "variance is undefined; use larger ones, or call eval()"
            )
        return torch.cat([self._virtual_batch(part) for part in parts_V])

    def _virtual_batch(self, x: Tensor) -> Tensor:
        momentum = 0.0
        if self.num_batches_tracked is not None:
            momentum = float(averaging_factor(self.momentum, self.num_batches_tracked))
            self.num_batches_tracked.add_(1)
        return self._normalize(x, training=True, momentum=momentum)

    def _normalize(self, x: Tensor, *, training: bool, momentum: float) -> Tensor:
        return torch.nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=training, momentum=momentum, eps=self.eps
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, virtual_batch_size={self.virtual_batch_size}, eps={self.eps}, momentum={self.momentum}"
