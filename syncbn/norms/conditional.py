"""`ConditionalBatchNorm`: weight and bias per sample, from a class or a vector. Owns that class alone."""

from __future__ import annotations

import inspect
from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup
from syncbn.errors import OptionError, ShapeError
from syncbn.layer import SyncBatchNorm
from syncbn.shapes import aligned_mask


@final
class ConditionalBatchNorm(nn.Module):
    """Normalization whose scale and shift depend on a condition of each sample.

        y_n = xhat_n * weight(c_n) + bias(c_n)        (weight, bias) = table[c] for a class, A c + b for a vector

    xhat is synchronized batch normalization without affine part, or whatever `norm` gives: with instance normalization this is AdaIN. At
    the beginning every weight is 1 and every bias 0, whatever the condition. In eval mode, xhat takes the running statistics.

    Args:
        num_features: C.
        num_classes: conditions are class indices below it; or
        condition_size: conditions are vectors of this length. Exactly one of the two.
        eps, momentum, process_group, device, dtype: of the synchronized batch normalization.
        norm: what to use in its place, a module without affine part.
    Shape: (N, C) or (N, C, *spatial), and (N,) integers or (N, condition_size) -> the former. N may differ between ranks and be 0 on some.

    Collectives: those of `SyncBatchNorm`; none with a `norm` that has none.
    Source: Dumoulin, Shlens, Kudlur 2017, "A Learned Representation For Artistic Style"; de Vries et al. 2017, "Modulating early visual
        processing by language".

    >>> layer = ConditionalBatchNorm(3, num_classes=10)
    >>> layer(torch.randn(4, 3, 5, 5), torch.tensor([0, 7, 7, 9])).shape
    torch.Size([4, 3, 5, 5])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int | None = None,
        condition_size: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        process_group: ProcessGroup | None = None,
        norm: nn.Module | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (num_classes is None) == (condition_size is None) or (num_classes or condition_size or 0) < 1:
            raise OptionError(
                f"num_classes {num_classes} and condition_size {condition_size} do not say what the condition is: "
                "expected exactly one of them, at least 1; pass num_classes for class indices or condition_size for vectors"
            )
        self.num_features, self.num_classes, self.condition_size = num_features, num_classes, condition_size
        if norm is None:
            norm = SyncBatchNorm(num_features, eps, momentum, affine=False, process_group=process_group, device=device, dtype=dtype)
        self.norm = norm
        affine: nn.Embedding | nn.Linear
        if num_classes is not None:
            affine, start = nn.Embedding(num_classes, 2 * num_features, device=device, dtype=dtype), "weight"
        else:
            affine, start = nn.Linear(condition_size or 1, 2 * num_features, device=device, dtype=dtype), "bias"
            nn.init.zeros_(affine.weight)
        with torch.no_grad():
            getattr(affine, start)[..., :num_features] = 1
            getattr(affine, start)[..., num_features:] = 0
        self.affine = affine

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize x (N, C, *spatial), scale and shift by the condition of each sample.

        Args:
            x: floating input.
            condition: one per sample, see the class.
            mask: as `SyncBatchNorm`: True where x counts; elsewhere the result and the gradients are 0.
        Raises:
            ShapeError: x, the condition or the mask has another shape or dtype. Classes out of range are an error of torch's embedding.
            OptionError: there is a mask, and the `norm` that this layer was given takes none.

        Collectives: see the class.
        """
        wanted = (x.shape[0],) if self.num_classes is not None else (x.shape[0], self.condition_size)
        if tuple(condition.shape) != wanted or condition.is_floating_point() != (self.num_classes is None):
            kind = "integer class indices" if self.num_classes is not None else "floating vectors"
            raise ShapeError(
                f"condition of shape {tuple(condition.shape)} and dtype {condition.dtype} does not fit input {tuple(x.shape)}: "
                f"expected {kind} of shape {wanted}; pass one condition per sample"
            )
        scale_NC, shift_NC = self.affine(condition).chunk(2, dim=1)
        y: Tensor = self.norm(x) if mask is None else self._normalized(x, mask)
        space = (1,) * (x.dim() - 2)
        y = y * scale_NC.view(*scale_NC.shape, *space) + shift_NC.view(*shift_NC.shape, *space)
        return (y if mask is None else torch.where(aligned_mask(mask, x), y, 0)).to(x.dtype)

    def _normalized(self, x: Tensor, mask: Tensor) -> Tensor:
        if "mask" not in inspect.signature(self.norm.forward).parameters:
            raise OptionError(
                f"norm {type(self.norm).__name__} takes no mask: expected one that does, as sync_bn, batch_renorm and switchable; "
                "build the layer without `norm`, or call it without mask"
            )
        y: Tensor = self.norm(x, mask)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        kind = "num_classes" if self.num_classes is not None else "condition_size"
        return f"{self.num_features}, {kind}={getattr(self, kind)}"
