"""`SwitchableNorm`: a learned mixture of instance, layer and batch statistics. Owns the mixture and its batch part across ranks.

Legend: N batch, C channels, S positions.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup, differentiable_sum_over_ranks, resolve, sum_over_ranks
from syncbn.copying import copied, picklable
from syncbn.moments import Moments
from syncbn.recomputation import Call, call_of, is_recomputation
from syncbn.running import averaging_factor, update_
from syncbn.shapes import accumulation_dtype, aligned_mask, along_channels, require_channels


@final
class SwitchableNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  torch and others find batch norms by this class
    """Normalization by a mixture of three statistics, whose proportions are learned.

        y = (x - mean) / sqrt(var + eps) * weight + bias        mean = sum_k p_k mean_k        var = sum_k q_k var_k        (all biased)
        k: instance (of a channel of a sample), layer (of a sample), batch (of a channel over all ranks)
        p = softmax(mean_weight)        q = softmax(var_weight)

    In eval mode the batch part takes the running statistics; the others are the sample's own. Input without space, or with one position,
    has no instance statistics: the softmax runs over the other two then.

    Args:
        num_features: C.
        eps, momentum, affine, device, dtype: as torch.nn.BatchNorm.
        process_group: ranks that the batch part is synchronized with; None for all.
        unbiased_running_var: enter n / (n - 1) times the batch's variance into running_var.
    Shape: (N, C) or (N, C, *spatial) -> the same. N may differ between ranks and be 0 on some.

    Collectives: in training mode one all_reduce(SUM) of 2C+1 float64 forward and one of 2C backward, if x needs a gradient. Every rank
        of the group must call, also with an empty batch, and run backward too. The recomputation of torch.utils.checkpoint sends nothing
        and moves nothing.
    Source: Luo et al. 2019, "Differentiable Learning-to-Normalize via Switchable Normalization"; names of the parameters and their order
        (instance, layer, batch) as in its code. Deviation: variances are not differences of squares in float32.

    >>> layer = SwitchableNorm(3)
    >>> layer(torch.randn(4, 3, 5, 5)).shape, layer.mean_weight.softmax(0).round(decimals=2).tolist()
    (torch.Size([4, 3, 5, 5]), [0.33000001311302185, 0.33000001311302185, 0.33000001311302185])
    """

    is_chosen_kind = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        process_group: ProcessGroup | None = None,
        unbiased_running_var: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.process_group, self.unbiased_running_var = process_group, unbiased_running_var
        self.mean_weight = nn.Parameter(torch.ones(3, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(3, device=device, dtype=dtype))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize x (N, C, *spatial).

        Args:
            x: floating input; may be empty where other ranks' are not.
            mask: boolean, broadcastable to (N, *spatial): True where x counts, for all three statistics. Elsewhere the result and the
                gradients are 0. A sample with one such position has an instance variance of 0.
        Raises:
            ShapeError: no such shape.
            RecomputationError: as `SyncBatchNorm`.

        Collectives: see the class.
        """
        require_channels(x, self.num_features)
        valid = None if mask is None else aligned_mask(mask, x)
        values = x.to(accumulation_dtype(x))
        num_positions = math.prod(x.shape[2:])
        if valid is None:
            count_N1 = torch.full((x.shape[0], 1), num_positions, dtype=torch.float64, device=x.device)
            instance = _instance_statistics(values, num_positions)
        else:
            values = torch.where(valid, values, 0)
            count_N1 = valid.flatten(1).sum(1, keepdim=True, dtype=torch.float64)
            instance = _masked_statistics(values, valid, count_N1)
        batch = self._batch_statistics(*instance, count_N1)
        parts = [instance, _layer_statistics(*instance), batch]
        first = int(num_positions <= 1)
        p, q = (logits[first:].to(values.dtype).softmax(0) for logits in (self.mean_weight, self.var_weight))
        mean_NC = sum((p[k] * part[0] for k, part in enumerate(parts[first:])), torch.zeros_like(instance[0]))
        var_NC = sum((q[k] * part[1] for k, part in enumerate(parts[first:])), torch.zeros_like(instance[1]))
        space = (1,) * (x.dim() - 2)
        y = (values - mean_NC.view(*mean_NC.shape, *space)) * (var_NC + self.eps).rsqrt().view(*var_NC.shape, *space)
        if self.weight is not None:
            y = y * along_channels(self.weight.to(y.dtype), x) + along_channels(self.bias.to(y.dtype), x)
        return (y if valid is None else torch.where(valid, y, 0)).to(x.dtype)

    def _batch_statistics(self, mean_NC: Tensor, var_NC: Tensor, count_N1: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) in the dtype of the instances': running in eval, of all ranks' batches in training."""
        running_mean_C, running_var_C, tracked = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training and running_mean_C is not None and running_var_C is not None:
            return running_mean_C.to(mean_NC.dtype), running_var_C.to(var_NC.dtype)
        group = resolve(self.process_group) if self.training else None
        packed = _packed(mean_NC.double(), var_NC.double(), count_N1)
        total = packed if group is None else _Sum.apply(packed, self.mean_weight, call_of(self), group)  # type: ignore[no-untyped-call]
        n = total[0].detach()
        mean_C, square_C = (total[1:] / n.clamp(min=1)).chunk(2)
        var_C = (square_C - mean_C.square()).clamp(min=0)
        is_first_pass = self.training and not is_recomputation()
        if is_first_pass and running_mean_C is not None and running_var_C is not None and tracked is not None:
            moments = Moments(n, mean_C.detach(), var_C.detach() * n)
            update_(running_mean_C, running_var_C, moments, averaging_factor(self.momentum, tracked), unbiased=self.unbiased_running_var)
            tracked.add_(1)
        return mean_C.to(mean_NC.dtype), var_C.to(var_NC.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> SwitchableNorm:
        return copied(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        return picklable(self)


def _instance_statistics(values: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over space, (N, C) each; without space the value itself, and 0."""
    if num_positions > 1 and values.shape[0]:  # var_mean warns of an empty batch
        var_NC, mean_NC = torch.var_mean(values, tuple(range(2, values.dim())), correction=0)
        return mean_NC, var_NC
    mean_NC = values.flatten(2).sum(2) if values.dim() > 2 else values
    return mean_NC, torch.zeros_like(mean_NC)


def _masked_statistics(values: Tensor, valid: Tensor, count_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the valid positions, (N, C) each; 0 for samples without any. `values` are 0 elsewhere."""
    n_N1 = count_N1.clamp(min=1).to(values.dtype)
    mean_NC = values.flatten(2).sum(2) / n_N1 if values.dim() > 2 else values
    distance = torch.where(valid, values - mean_NC.view(*mean_NC.shape, *[1] * (values.dim() - 2)), 0)
    var_NC = distance.square().flatten(2).sum(2) / n_N1 if values.dim() > 2 else torch.zeros_like(mean_NC)
    return mean_NC, var_NC


def _layer_statistics(mean_NC: Tensor, var_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over channels and space, (N, 1) each, by the law of total variance."""
    mean_N1 = mean_NC.mean(1, keepdim=True)
    return mean_N1, (var_NC + (mean_NC - mean_N1).square()).mean(1, keepdim=True)


def _packed(mean_NC: Tensor, var_NC: Tensor, count_N1: Tensor) -> Tensor:
    """The packed moments of all samples here, (2C + 1,) float64: (sum S, sum S mean_n, sum S (var_n + mean_n^2))."""
    return torch.cat((count_N1.sum(0), (count_N1 * mean_NC).sum(0), (count_N1 * (var_NC + mean_NC.square())).sum(0)))


class _Sum(torch.autograd.Function):
    """Packed moments summed over ranks, differentiable any number of times; the count is no function of the input.

    The proportions are an argument so that the graph has this node, which keeps the sum for a recomputation, if x needs no gradient.

    Collectives: one all_reduce(SUM) of 2C+1 float64, and one of 2C in each backward if x needs a gradient.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, _: Tensor, call: Call | None, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return sum_over_ranks(packed, group) if call is None else call.sum(packed, group, ctx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        summed = differentiable_sum_over_ranks(grads[0][1:], ctx.group)
        return torch.cat((torch.zeros_like(grads[0][:1]), summed)), None, None, None
