"""`BatchRenorm`: batch statistics corrected towards the running ones. Owns the correction, its clipping, and the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup, resolve
from syncbn.copying import copied, picklable
from syncbn.errors import OptionError
from syncbn.function import Parameters, normalize_batch
from syncbn.functional import sync_batch_norm
from syncbn.moments import Moments, variance
from syncbn.recomputation import Call, call_of, is_recomputation
from syncbn.running import averaging_factor, update_
from syncbn.shapes import accumulation_dtype, aligned_mask, along_channels, require_channels

Tensors = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Clipping:
    """How far the correction may go, by step: nothing until `start`, then linearly to r_max and d_max.

        r_max(t) = 1 + (r_max - 1) clip((t - start) / (r_end - start), 0, 1)
        d_max(t) = d_max clip((t - start) / (d_end - start), 0, 1)

    Invariants: r_max >= 1; d_max >= 0; 0 <= start <= r_end and d_end. Where start equals an end, that limit jumps.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    start: int = 5_000
    r_end: int = 40_000
    d_end: int = 25_000

    def __post_init__(self) -> None:
        if self.r_max < 1 or self.d_max < 0:
            raise OptionError(
                f"r_max {self.r_max} and d_max {self.d_max} leave no room: expected r_max >= 1 and d_max >= 0, such as 3 and 5"
            )
        if not 0 <= self.start <= min(self.r_end, self.d_end):
            raise OptionError(
                f"schedule start {self.start}, r_end {self.r_end}, d_end {self.d_end} does not go forward: expected steps with "
                "0 <= start <= r_end and start <= d_end; use 0, 0, 0 for the limits from the first step"
            )

    def at(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The limits (r_max, d_max) at a step, as float64 scalars on its device, so that nothing waits for it.

        >>> [limit.item() for limit in Clipping(start=10, r_end=30, d_end=20).at(torch.tensor(20))]
        [2.0, 5.0]
        """

        def ramp(end: int) -> Tensor:
            return ((step.double() - self.start + (end == self.start)) / max(end - self.start, 1)).clamp(0, 1)

        return 1 + (self.r_max - 1) * ramp(self.r_end), self.d_max * ramp(self.d_end)


@final
class BatchRenorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  torch and others find batch norms by this class
    """Batch renormalization: in training, batch statistics with a correction towards the running ones that carries no gradient.

        xhat = (x - mean) / sqrt(var + eps)        y = (xhat r + d) * weight + bias        (var biased)
        r = clip(sqrt((var + eps) / (running_var + eps)), 1 / r_max, r_max)
        d = clip((mean - running_mean) / sqrt(running_var + eps), -d_max, d_max)

    Unclipped, the output is that of eval mode, so that training and inference agree at small batches. r_max and d_max grow with
    num_batches_tracked (see `Clipping`): at first, r = 1 and d = 0, which is batch normalization. The running statistics in r and d are
    those before this batch. In eval mode: the running statistics, as torch.nn.BatchNorm. The state dict is the same, too.

    Args:
        num_features: C.
        eps, momentum, affine, device, dtype: as torch.nn.BatchNorm. The source recommends a momentum of 0.01.
        r_max, d_max: final limits, r_max >= 1 and d_max >= 0.
        start, r_end, d_end: steps at which the limits begin to grow, and at which each is reached; the defaults are the source's.
        synchronized: take the batch statistics over all ranks of the group.
        process_group: ranks to synchronize with; None for all.
        unbiased_running_var: enter n / (n - 1) times the batch's variance into running_var.
    Shape: (N, C) or (N, C, *spatial) -> the same. N may differ between ranks and be 0 on some.

    Collectives: if synchronized, in training mode one all_reduce(SUM) of 2C+1 float64 forward and one of 2C float64 backward, as
        `SyncBatchNorm`: every rank of the group must call, also with an empty batch, and run backward too. Else none. The recomputation
        of torch.utils.checkpoint sends nothing and moves nothing, and is corrected as its first pass was. (Of two calls with the same
        batch statistics and live graphs, both are recomputed as the first.)
    Accuracy: half types are rounded once more than in `SyncBatchNorm`, before the correction.
    Source: Ioffe 2017, "Batch Renormalization". Deviation: the running variance is kept, not the running standard deviation.

    >>> layer = BatchRenorm(3, start=0, r_end=0, d_end=0, r_max=100.0, d_max=100.0)
    >>> x = torch.randn(8, 3, 5) * 2 + 1
    >>> torch.allclose(layer(x), x, atol=1e-4)  # the running statistics were 0 and 1
    True
    """

    is_chosen_kind = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        start: int = 5_000,
        r_end: int = 40_000,
        d_end: int = 25_000,
        synchronized: bool = True,
        process_group: ProcessGroup | None = None,
        unbiased_running_var: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.clipping = Clipping(r_max, d_max, start, r_end, d_end)
        self.synchronized, self.process_group, self.unbiased_running_var = synchronized, process_group, unbiased_running_var

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize x (N, C, *spatial).

        Args:
            x: floating input; may be empty where other ranks' are not.
            mask: as `SyncBatchNorm`: True where x counts; elsewhere the result and the gradients are 0.
        Raises:
            ShapeError: no such shape.
            BatchTooSmallError, RecomputationError: as `SyncBatchNorm`.

        Collectives: see the class.
        """
        require_channels(x, self.num_features)
        mean_C, var_C, tracked = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training or mean_C is None or var_C is None or tracked is None:
            return sync_batch_norm(x, mean_C, var_C, self.weight, self.bias, training=False, eps=self.eps, mask=mask)
        mask = None if mask is None else aligned_mask(mask, x)
        group = resolve(self.process_group) if self.synchronized else None
        is_first_pass = not is_recomputation()
        tensors: Tensors = (x, self.weight, self.bias)
        correction_2C = torch.cat((torch.ones_like(var_C), torch.zeros_like(mean_C)))
        if group is not None or x.numel() > 0:
            scaled, moments = normalize_batch(x, mask, Parameters(self.weight, None, self.eps, group, self))
            tensors, correction_2C = self._corrected(moments, (scaled, self.weight, self.bias))
            if is_first_pass:
                update_(mean_C, var_C, moments, averaging_factor(self.momentum, tracked), unbiased=self.unbiased_running_var)
        if is_first_pass:
            tracked.add_(1)
        y = _affine(*tensors, correction_2C)
        return y if mask is None else torch.where(mask, y, 0)

    def _corrected(self, batch: Moments, tensors: Tensors) -> tuple[Tensors, Tensor]:
        """The tensors (xhat weight, weight, bias), and (r, d), (2C,) float64.

        In a recomputation r and d are those of the first pass: the running statistics have moved since. The graph of the returned tensors
        keeps them until then.
        """
        call = call_of(self)
        if call is None:
            return tensors, self._correction(batch)
        key_2C = torch.cat((batch.mean, variance(batch, unbiased=False)))
        find = partial(self._correction, batch)
        correction_2C, scaled, weight_C, bias_C = _Recalled.apply(call, key_2C, find, *tensors)  # type: ignore[no-untyped-call]
        return (scaled, weight_C, bias_C), correction_2C

    def _correction(self, batch: Moments) -> Tensor:
        """Clipped r and d by the present running statistics, (2C,) float64."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        r_max, d_max = self.clipping.at(self.num_batches_tracked)
        variance_C = self.running_var.double() + self.eps
        r_C = ((variance(batch, unbiased=False) + self.eps) / variance_C).sqrt()
        d_C = (batch.mean - self.running_mean.double()) * variance_C.rsqrt()
        return torch.cat((torch.clamp(r_C, 1 / r_max, r_max), torch.clamp(d_C, -d_max, d_max)))

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchRenorm:
        return copied(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        return picklable(self)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, {self.clipping}, synchronized={self.synchronized}"  # type: ignore[no-untyped-call]


class _Recalled(torch.autograd.Function):
    """What a call finds, or has found in its first pass, beside tensors whose graph then keeps it."""

    @staticmethod
    def forward(ctx: Any, call: Call, key: Tensor, find: Callable[[], Tensor], *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        found = call.recall(key, find, ctx)
        ctx.mark_non_differentiable(found)
        return (found, *(None if tensor is None else tensor.view_as(tensor) for tensor in tensors))

    @staticmethod
    def backward(_: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, None, *grads[1:])


def _affine(scaled: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, correction_2C: Tensor) -> Tensor:
    """(xhat weight) r + d weight + bias."""
    r_C, d_C = correction_2C.chunk(2)
    shift_C = d_C if weight_C is None or bias_C is None else d_C * weight_C + bias_C
    dtype = accumulation_dtype(scaled)
    y = scaled.to(dtype) * along_channels(r_C.to(dtype), scaled) + along_channels(shift_C.to(dtype), scaled)
    return y.to(scaled.dtype)
