"""What the ranks compute in backward while they wait for each other: the weights' gradients of convolutions.

Owns: the order in which autograd takes up what is ready, and the convolutions whose two gradients are taken apart. Does not own the
reductions that are waited for (`function.py`).

How it works. Behind a convolution only its input's gradient is waited for: the normalization before it needs that for its sums over ranks,
and everything before that. The weight's gradient is needed at the end of the step. So the input's is computed at once, the sums are sent,
and the weight's is computed while they travel, or while a rank that is behind catches up. Autograd's engine takes, of all nodes that are
ready, the one with the highest sequence number, which it gives in the order of the forward. Here ends of reductions get the lowest
numbers, and weights' gradients one above: what leads to the next reduction comes first, then weights' gradients, then waiting.

Nothing else changes: the same kernels compute the same gradients, equal in every bit.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

LOWEST = 4096
"""Sequence numbers below are for ends of reductions; this one is for the weights' gradients; those that autograd gives are above."""
NUM_DEFERRED = 4
"""Weights' gradients that may be put off at once in a backward: each keeps a batch and its gradient alive for a little longer."""
_CAN_ORDER = hasattr(torch._C._FunctionBase, "_set_sequence_nr")  # noqa: SLF001  there is no public way to order a backward


class _Thread(threading.local):
    """What one thread knows: of its forwards, and of the backward that it runs."""

    is_above = False  # whether the numbers that autograd gives are above LOWEST
    backward = -1
    num_ends = 0
    num_deferred = 0


_thread = _Thread()


def prepare() -> None:
    """Have autograd give numbers above `LOWEST` from now on, in this thread: called in every forward whose backward is ordered."""
    if _thread.is_above or not _CAN_ORDER:
        return
    with torch.enable_grad():
        leaf = torch.zeros(1, requires_grad=True)
        while leaf.view(1).grad_fn._sequence_nr() <= LOWEST:  # type: ignore[union-attr]  # noqa: SLF001  as above
            pass
    _thread.is_above = True


def put_last(end: Any) -> None:
    """Have the engine take a node that ends a reduction after all else that is ready; of several, the one that was put there first."""
    if _CAN_ORDER:
        _enter_backward()
        _thread.num_ends += 1
        end._set_sequence_nr(max(LOWEST - _thread.num_ends, 0))  # noqa: SLF001  as above


def _enter_backward() -> None:
    """Count from the beginning where another backward runs than before, which may have ended in the middle."""
    backward = torch._C._current_graph_task_id()  # noqa: SLF001  as in recomputation.py
    if backward != _thread.backward:
        _thread.backward, _thread.num_ends, _thread.num_deferred = backward, 0, 0


class _How(NamedTuple):
    """A convolution's arguments, as `torch.ops.aten.convolution` has them after the tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, how: _How, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """Those that are wanted of the gradients of x, weight and bias."""
    bias_shape = [weight.shape[0]] if wanted[2] else None
    gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(dy, x, weight, bias_shape, *how, wanted)
    return gradients


class _Weight(torch.autograd.Function):
    """A convolution's weight, in the dtype that it computes in. In backward a gradient that was put off is computed here."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype, ctx.deferred = weight.dtype, None
        return weight.view_as(weight) if weight.dtype == dtype else weight.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        gradient = grads[0]
        if ctx.deferred is not None:
            placeholder, (dy, x, weight, how) = ctx.deferred
            ctx.deferred = None
            _enter_backward()
            _thread.num_deferred -= 1
            found = _gradients(dy, x, weight, how, [False, True, False])[1]
            assert found is not None
            # The weight may have another use: in the graph of an earlier backward.
            gradient = found if gradient is placeholder else gradient + found
        return gradient.to(ctx.dtype), None


class _Convolution(torch.autograd.Function):
    """A convolution of a weight that comes from `_Weight`, which it leaves the weight's gradient to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        y: Tensor = torch.ops.aten.convolution(x, weight, bias, *how)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, (x, weight), wanted = grads[0], ctx.saved_tensors, list(ctx.needs_input_grad[:3])
        placeholder = None
        if wanted[0] and wanted[1] and not torch.is_grad_enabled() and _may_defer():
            wanted[1], placeholder = False, dy.new_zeros(()).expand(weight.shape)
            node = ctx.next_functions[1][0]
            node.deferred = placeholder, (dy, x, weight, ctx.how)
            node._set_sequence_nr(LOWEST)  # noqa: SLF001  as above
        dx, dweight, dbias = _gradients(dy, x, weight, ctx.how, wanted)
        return dx, dweight if placeholder is None else placeholder, dbias, None


def _may_defer() -> bool:
    """Whether one more weight's gradient may be put off; if so, it is counted."""
    _enter_backward()
    is_room = _thread.num_deferred < NUM_DEFERRED
    _thread.num_deferred += is_room
    return is_room


class _Overlapped(nn.modules.conv._ConvNd):  # noqa: SLF001  the family's only common class
    """A convolution whose weight's gradient can wait."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  torch's name
        dtype = _dtype_of(input, weight) if self._is_taken_apart(input, weight, bias) else None
        if dtype is None:
            result: Tensor = super()._conv_forward(input, weight, bias)
            return result
        prepare()
        assert not isinstance(self.padding, str)
        how = _How(self.stride, self.padding, self.dilation, False, self.output_padding, self.groups)
        bias = None if bias is None else bias.to(dtype)
        y: Tensor = _Convolution.apply(input.to(dtype), _Weight.apply(weight, dtype), bias, how)  # type: ignore[no-untyped-call]
        return y

    def _is_taken_apart(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether there is a plain backward to order: no tracing, no transforms of functions, no tensors that are not what they seem."""
        is_plain = self.padding_mode == "zeros" and not isinstance(self.padding, str) and x.dim() == weight.dim()
        is_traced = torch.compiler.is_compiling() or torch._C._is_tracing()  # noqa: SLF001  no public way
        is_transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # noqa: SLF001  no public way
        is_differentiated = torch.is_grad_enabled() and weight.requires_grad and x.requires_grad
        is_foreign = torch.overrides.has_torch_function((x, weight, bias))
        return _CAN_ORDER and is_differentiated and is_plain and not (is_traced or is_transformed or is_foreign)


def _dtype_of(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """What a convolution of these computes in, autocast included; None where torch has to say."""
    kind, dtypes = x.device.type, {x.dtype, weight.dtype}
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and torch.float64 not in dtypes:
        return torch.get_autocast_dtype(kind)
    return x.dtype if len(dtypes) == 1 else None


@final
class OverlappedConv1d(_Overlapped, nn.Conv1d):
    """`torch.nn.Conv1d`, see `overlap_weight_gradients`."""


@final
class OverlappedConv2d(_Overlapped, nn.Conv2d):
    """`torch.nn.Conv2d`, see `overlap_weight_gradients`."""


@final
class OverlappedConv3d(_Overlapped, nn.Conv3d):
    """`torch.nn.Conv3d`, see `overlap_weight_gradients`."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: OverlappedConv1d, nn.Conv2d: OverlappedConv2d, nn.Conv3d: OverlappedConv3d}


def overlap_weight_gradients(module: nn.Module) -> nn.Module:
    """Have a model's convolutions compute their weights' gradients while synchronized layers wait for the other ranks, in backward.

    The waiting for the wire and for ranks that are behind, which every layer costs otherwise, is filled with work that must be done anyway.
    Results are equal in every bit, hooks run as ever, second derivatives are as ever. At most four weights' gradients are put off at a
    time, which keeps so many activations alive for a little longer.

    Args:
        module: a model. `torch.nn.Conv1d`, `Conv2d` and `Conv3d` in it get another class in place; subclasses of these with a forward of
            their own are left alone. Parameters, names, state dict and hooks stay.
    Returns:
        The same module.

    Collectives: none, but in backward they come in another order, among those of DistributedDataParallel: every rank must call this, or
        none. Under `torch.compile` it changes nothing.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> overlap_weight_gradients(model)[0]
    OverlappedConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    for layer in module.modules():
        if type(layer) in _KINDS:
            layer.__class__ = _KINDS[type(layer)]
    return module
