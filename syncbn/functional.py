"""`sync_batch_norm`: the layer as a function of its tensors.

Owns: the choice between torch's own batch norm (alone, or in evaluation) and the synchronized one, and the checks of shapes.
Does not own parameters, buffers or modes (`layer.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncbn.activations import activation_named
from syncbn.collectives import ProcessGroup, resolve
from syncbn.errors import BatchTooSmallError, OptionError, ShapeError
from syncbn.function import Parameters, normalized
from syncbn.recomputation import is_recomputation
from syncbn.shapes import aligned_mask, values_per_channel
from syncbn.stages import Running


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
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Batch normalization with the statistics of all ranks' batches together.

        y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)
                                                                (var biased, over all ranks, the batch, space and the mask)

    With `training`, running statistics (if given) are updated in place; without, they replace the batch's and nothing is communicated.
    Alone (no process group, or one of one rank) this is `torch.nn.functional.batch_norm`, bit for bit, then residual and activation.
    Where it synchronizes, neither is a pass of its own, and what the activation is applied to is not kept for backward but computed again.

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
        activation: name of an activation (see `SyncBatchNorm`), or None.
        residual: added before the activation: the shape of x. Its gradient is that of the sum, 0 outside the mask.
    Returns:
        y with the shape, dtype and memory format of x.
    Raises:
        ShapeError: dimensions, channels, mask or residual do not fit.
        OptionError: no such activation.
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
    _check_epilogue(x, residual, activation)
    mask = None if mask is None else aligned_mask(mask, x)
    after = _After(activation, residual, mask)
    if not training:
        if running_mean is None and mask is not None:
            return normalized(x, mask, Parameters(weight, bias, eps, None, None, activation, residual))
        x = x if mask is None else torch.where(mask, x, 0)  # whatever is outside, NaN included, must not reach the weight's gradient
        y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training=running_mean is None, momentum=0.0, eps=eps)
        return after(y)
    if running_mean is not None and running_var is not None and is_recomputation():
        running_mean, running_var = running_mean.clone(), running_var.clone()  # the first pass has moved them: these are dropped
    group = resolve(process_group)
    if group is None and mask is None and (unbiased_running_var or running_var is None):
        _refuse_one_value(x)
        factor = _as_number(momentum)
        if factor is not None:
            moved = _unwatched(running_mean), _unwatched(running_var)
            return after(torch.nn.functional.batch_norm(x, *moved, weight, bias, training=True, momentum=factor, eps=eps))
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, momentum, unbiased_running_var)
    return normalized(x, mask, Parameters(weight, bias, eps, group, owner, activation, residual, running))


class _After(NamedTuple):
    """What comes after torch's own batch norm. In place: nobody else has its result, and its derivative does not need it."""

    activation: str | None
    residual: Tensor | None
    mask: Tensor | None

    def __call__(self, y: Tensor) -> Tensor:
        """The activation of y and the residual; 0 outside the mask."""
        residual = self.residual
        if residual is not None:
            y = y.add_(residual if self.mask is None else torch.where(self.mask, residual, 0))
        if self.activation is not None:
            y = activation_named(self.activation).function(y)
        return y if self.mask is None else torch.where(self.mask, y, 0)


def _unwatched(buffer: Tensor | None) -> Tensor | None:
    """The same memory without its count of changes: torch saves these buffers for a backward that does not read them in training, and would
    refuse it after a call with a mask, which counts.
    """
    return buffer if buffer is None or torch.compiler.is_compiling() else buffer.data


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


def _check_epilogue(x: Tensor, residual: Tensor | None, activation: str | None) -> None:
    if activation is not None:
        activation_named(activation)
    if residual is not None and (residual.shape != x.shape or not residual.is_floating_point()):
        raise ShapeError(
            f"residual is {residual.dtype} of shape {tuple(residual.shape)}: expected a floating dtype and the input's shape "
            f"{tuple(x.shape)}; bring it there (a strided or 1x1 convolution, as in ResNet) before it is added"
        )


def _refuse_one_value(x: Tensor) -> None:
    if values_per_channel(x) == 1:
        raise BatchTooSmallError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: use a larger batch, or call eval()"
        )
