"""Normalization layers that torch lacks in a form that takes (N, C) and (N, C, *spatial) alike.

Owns: `LayerNorm` and `InstanceNorm` (channels first) and `FrozenBatchNorm`. Local batch norm is `syncbn/local.py`.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.errors import BatchTooSmallError, ShapeError
from syncbn.shapes import along_channels


@final
class LayerNorm(nn.Module):
    """Layer normalization over the channels of channels-first input, at each position by itself.

        y = (x - mean_c x) / sqrt(var_c x + eps) * weight_c + bias_c        (var biased)

    The same in training and evaluation; no state.

    Collectives: none.
    Source: Ba, Kiros, Hinton 2016, "Layer Normalization". Deviation: torch.nn.LayerNorm normalizes trailing dimensions; this dimension 1.

    >>> LayerNorm(3)(torch.randn(4, 3, 5, 5)).shape
    torch.Size([4, 3, 5, 5])
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, affine: bool = True, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial). A contiguous x gives a contiguous result: the layers behind it run as they would without."""
        y = torch.nn.functional.layer_norm(x.movedim(1, -1), (self.num_features,), self.weight, self.bias, self.eps).movedim(-1, 1)
        return y.contiguous() if x.is_contiguous() else y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


@final
class InstanceNorm(nn.Module):
    """Instance normalization: each channel of each sample by its own statistics over space, in training and evaluation.

        y = (x - mean_s x) / sqrt(var_s x + eps) * weight_c + bias_c        (var biased)

    No state. An empty batch gives an empty result, and gradients of 0 for weight and bias; torch.nn.InstanceNorm raises IndexError there.

    Collectives: none.
    Source: Ulyanov, Vedaldi, Lempitsky 2016, "Instance Normalization".

    >>> InstanceNorm(3)(torch.randn(4, 3, 5, 5)).shape
    torch.Size([4, 3, 5, 5])
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, affine: bool = True, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial), with more than one position.

        Raises:
            ShapeError: no space.
            BatchTooSmallError: one position, whose variance is 0.
        """
        if x.dim() < 3:
            raise ShapeError(
                f"expected at least 3D input (got shape {tuple(x.shape)}): instance normalization needs space; choose group_norm for (N, C)"
            )
        if x.shape[0] == 0:  # the kernel looks at the first sample
            return self._affine(x)
        if math.prod(x.shape[2:]) == 1:
            raise BatchTooSmallError(
                f"Expected more than 1 spatial element when training, got input size {tuple(x.shape)}: the variance of one position is 0; "
                "normalize before pooling, or choose group_norm or layer_norm"
            )
        return torch.nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)

    def _affine(self, x: Tensor) -> Tensor:
        """Weight and bias alone, so that a rank without samples has gradients of 0 for them, as the other ranks' reduction needs."""
        if self.weight is None or self.bias is None:
            return x.clone()
        return (x * along_channels(self.weight, x) + along_channels(self.bias, x)).to(x.dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


@final
class FrozenBatchNorm(nn.Module):
    """Batch normalization with fixed statistics, weight and bias: all buffers, never updated, the same in training and evaluation.

        y = (x - running_mean) / sqrt(running_var + eps) * weight + bias

    The state dict is that of torch.nn.BatchNorm; num_batches_tracked is ignored on loading.

    Collectives: none.
    Source: He et al. 2016, "Deep Residual Learning", appendix A (object detection); torchvision.ops.FrozenBatchNorm2d.

    >>> list(FrozenBatchNorm(3).state_dict())
    ['weight', 'bias', 'running_mean', 'running_var']
    """

    def __init__(self, num_features: int, eps: float = 1e-5, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial)."""
        return torch.nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps}"

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    bias: Tensor
