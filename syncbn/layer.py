"""`SyncBatchNorm`, the module: parameters, buffers, modes.

Owns: construction, the state dict, copying and pickling, and which tensors enter `sync_batch_norm`. Does not own the arithmetic.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.activations import activation_named
from syncbn.adoption import synchronized
from syncbn.collectives import ProcessGroup
from syncbn.copying import copied, picklable
from syncbn.functional import sync_batch_norm
from syncbn.recomputation import is_recomputation
from syncbn.running import averaging_factor


@final
class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  torch and others find batch norms by this class
    """Batch normalization whose statistics are those of all ranks' batches together.

        y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)

    A drop-in for `torch.nn.SyncBatchNorm`: same arguments in the same order, and a state dict that goes both ways to it and to
    `torch.nn.BatchNorm1d/2d/3d`. Works on any device that has a backend for `torch.distributed`. Without an initialized process
    group, in a group of one, and in eval mode it is local batch normalization, and communicates nothing.

    Args:
        num_features: C, the size of dimension 1.
        eps: added to the biased variance.
        momentum: weight of the new batch in the running statistics; None for the average over all batches.
        affine: learn weight and bias.
        track_running_stats: keep running_mean, running_var and num_batches_tracked. Without, eval mode uses the (local) batch.
        process_group: ranks to synchronize with; None for all. Copied by reference with deepcopy; not pickled: an unpickled layer has None.
        device, dtype: of the parameters and buffers. Statistics are computed and sent in float64 whatever this is.
        activation: "relu", "relu6", "leaky_relu" (slope 0.01), "silu", "gelu" (exact), "hardswish" or "elu", applied at the end; or None.
            Where the layer synchronizes, what it is applied to is computed again in backward instead of stored.
        unbiased_running_var: enter n / (n - 1) times the batch's variance into running_var, as torch does; False keeps the biased
            variance, as Keras, Flax and Paddle do.
    Shape: (N, C) or (N, C, *spatial) -> the same. N may differ between ranks and be 0 on some.

    Collectives: in training mode one all_reduce(SUM) of 2C+1 float64 forward and one of 2C float64 backward. Every rank of the group
        must call the same layers in the same order, also with an empty batch, and run backward too. The recomputation of
        torch.utils.checkpoint sends nothing and moves nothing.

    >>> import torch
    >>> layer = SyncBatchNorm(3)
    >>> layer(torch.randn(4, 3, 5, 5)).shape
    torch.Size([4, 3, 5, 5])
    >>> int(layer.num_batches_tracked)
    1
    """

    process_group: ProcessGroup | None

    def __init__(  # noqa: PLR0917  the order of torch.nn.SyncBatchNorm
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: ProcessGroup | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        activation: str | None = None,
        unbiased_running_var: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if activation is not None:
            activation_named(activation)
        self.process_group = process_group
        self.activation = activation
        self.unbiased_running_var = unbiased_running_var

    def forward(self, x: Tensor, mask: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Normalize x (N, C, *spatial).

        Args:
            x: floating input; may be empty where other ranks' are not.
            mask: boolean, broadcastable to (N, *spatial): True where x counts. Elsewhere the result and the gradients are 0.
            residual: the shape of x; added before the activation, as at the end of a residual block.
        Returns:
            Same shape, dtype and memory format as x.
        Raises:
            ShapeError, BatchTooSmallError, GroupError: as `sync_batch_norm`.

        Collectives: see the class.
        """
        tracked = self.num_batches_tracked if self.training and self.track_running_stats else None
        y = sync_batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            training=self.training,
            momentum=0.0 if tracked is None else averaging_factor(self.momentum, tracked),
            eps=self.eps,
            process_group=self.process_group,
            mask=mask,
            unbiased_running_var=self.unbiased_running_var,
            owner=self,
            activation=self.activation,
            residual=residual,
        )
        if tracked is not None and not is_recomputation():
            tracked.add_(1)
        return y

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
        """`syncbn.convert_sync_batchnorm`, under the name that torch users look for."""
        return synchronized(module, process_group, cls)

    def extra_repr(self) -> str:
        """Arguments that differ from torch's, after torch's own."""
        text = str(super().extra_repr())  # type: ignore[no-untyped-call]
        if self.activation is not None:
            text += f", activation={self.activation}"
        return text if self.unbiased_running_var else text + ", unbiased_running_var=False"

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        return copied(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        return picklable(self)
