"""`sync_batch_norm`: the layer as a function of its tensors.

Owns: the choice between torch's own batch norm (alone, or in evaluation) and the synchronized one, and the checks of shapes.
Does not own parameters, buffers or modes (`layer.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncbn.collectives import ProcessGroup, resolve
from syncbn.errors import BatchTooSmallError, OptionError, ShapeError
from syncbn.function import Parameters, normalize_batch
from syncbn.recomputation import is_recomputation
from syncbn.running import update_
from syncbn.shapes import aligned_mask, values_per_channel


def sync_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    process_group: ProcessGroup | None = None,
    mask: Tensor | None = None,
    unbiased_running_var: bool = True,
    owner: object = None,
) -> Tensor:
    """Batch normalization with the statistics of all ranks' batches together.

        y = (x - mean) / sqrt(var + eps) * weight + bias        (var biased, over all ranks, the batch, space and the mask)

    With `training`, running statistics (if given) are updated in place; without, they replace the batch's and nothing is communicated.
    Alone (no process group, or one of one rank) this is `torch.nn.functional.batch_norm`, bit for bit.

    Args:
        x: (N, C) or (N, C, *spatial), floating; N may differ between ranks and be 0 on some.
        running_mean, running_var: (C,) or both None.
        weight, bias: (C,) or None.
        training: use (and synchronize) batch statistics.
        momentum: weight of the new batch in the running statistics.
        eps: added to the biased variance.
        process_group: ranks to synchronize with; None is all of them.
        mask: boolean, broadcastable to (N, *spatial): True where x counts. Elsewhere y is 0 and gradients are 0.
        unbiased_running_var: enter n / (n - 1) times the variance into running_var, as torch does.
        owner: whose call this is, such as the layer: any object that can be referred to weakly. With one, a recomputation in backward
            (activation checkpointing) reuses the sums of the first pass; without, it sends again. It never moves running statistics.
    Returns:
        y with the shape, dtype and memory format of x.
    Raises:
        ShapeError: dimensions, channels or mask do not fit.
        BatchTooSmallError: fewer than two values per channel (on the CPU: over all ranks, raised on each of them).
        RecomputationError: a recomputation does not repeat any first pass of its owner.

    Collectives: in training, one all_reduce(SUM) of 2C+1 float64 forward and one of 2C float64 backward. Every rank of the group must
        call, also with an empty batch, in the same order of layers, and must run backward too, as `y.sum().backward()` if it has no
        samples.

    >>> import torch
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> sync_batch_norm(x, None, None, training=True).flatten().round(decimals=3).tolist()
    [-1.0, 1.0]
    """
    _check(x, running_mean, running_var, weight)
    mask = None if mask is None else aligned_mask(mask, x)
    if not training:
        if running_mean is None and mask is not None:
            return normalize_batch(x, mask, Parameters(weight, bias, eps, group=None))[0]
        x = x if mask is None else torch.where(mask, x, 0)  # whatever is outside, NaN included, must not reach the weight's gradient
        y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training=running_mean is None, momentum=0.0, eps=eps)
        return y if mask is None else torch.where(mask, y, 0)
    if running_mean is not None and running_var is not None and is_recomputation():
        running_mean, running_var = running_mean.clone(), running_var.clone()  # the first pass has moved them: these are dropped
    group = resolve(process_group)
    if group is None and mask is None and (unbiased_running_var or running_var is None):
        _refuse_one_value(x)
        factor = _as_number(momentum)
        if factor is not None:
            return torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training=True, momentum=factor, eps=eps)
    y, moments = normalize_batch(x, mask, Parameters(weight, bias, eps, group, owner))
    if running_mean is not None and running_var is not None:
        update_(running_mean, running_var, moments, momentum, unbiased=unbiased_running_var)
    return y


def _as_number(momentum: float | Tensor) -> float | None:
    """The momentum as a number; None where only a wait for the device, or a break of the graph, would tell."""
    if not isinstance(momentum, Tensor):
        return momentum
    return None if torch.compiler.is_compiling() or momentum.device.type != "cpu" else float(momentum)


def _check(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None) -> None:
    if x.dim() < 2:
        raise ShapeError(
            f"expected at least 2D input (got {x.dim()}D input of shape {tuple(x.shape)}): pass (N, C) or (N, C, *spatial); "
            "unsqueeze a single sample"
        )
    if x.shape[1] == 0:
        raise ShapeError(f"input of shape {tuple(x.shape)} has 0 channels: expected at least 1 in dimension 1; check the layer before")
    if not x.is_floating_point():
        raise ShapeError(f"input of dtype {x.dtype} cannot be normalized: expected a floating dtype; convert it with .float()")
    if (running_mean is None) != (running_var is None):
        raise OptionError("only one of running_mean and running_var is given: expected both or neither; pass the other one too")
    channels = next((t.shape[0] for t in (running_mean, weight) if t is not None), x.shape[1])
    if x.shape[1] != channels:
        raise ShapeError(
            f"input of shape {tuple(x.shape)} has {x.shape[1]} channels: expected {channels} in dimension 1, the layer's num_features; "
            "check the order of dimensions or build the layer with the right number"
        )


def _refuse_one_value(x: Tensor) -> None:
    if values_per_channel(x) == 1:
        raise BatchTooSmallError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: use a larger batch, or call eval()"
        )
