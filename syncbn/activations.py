"""Activations by name, and their derivatives as operators that can be differentiated again. Owns the list of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import elu, gelu, hardswish, leaky_relu, relu, relu6, silu

from syncbn.errors import OptionError
from syncbn.spelling import nearest

_ATEN = torch.ops.aten


class Activation(NamedTuple):
    """An elementwise function f with f(0) = 0."""

    function: Callable[[Tensor], Tensor]
    """f(z)."""
    gradient: Callable[[Tensor, Tensor], Tensor]
    """dy f'(z) from dy and z: torch's own derivative of f, differentiable with respect to both."""


def _silu_gradient(dy: Tensor, z: Tensor) -> Tensor:
    # torch's operator has no derivative of its own.
    sigmoid = z.sigmoid()
    return dy * torch.addcmul(sigmoid, sigmoid * (1 - sigmoid), z)


_ACTIVATIONS = {
    "elu": Activation(elu, lambda dy, z: _ATEN.elu_backward(dy, 1.0, 1.0, 1.0, False, z)),
    "gelu": Activation(gelu, _ATEN.gelu_backward),
    "hardswish": Activation(hardswish, _ATEN.hardswish_backward),
    "leaky_relu": Activation(leaky_relu, lambda dy, z: _ATEN.leaky_relu_backward(dy, z, 0.01, False)),
    "relu": Activation(relu, lambda dy, z: _ATEN.threshold_backward(dy, z, 0.0)),
    "relu6": Activation(relu6, lambda dy, z: _ATEN.hardtanh_backward(dy, z, 0.0, 6.0)),
    "silu": Activation(silu, _silu_gradient),
}


def activation_named(name: str) -> Activation:
    """The activation of a name.

    Raises:
        OptionError: no such activation.

    >>> activation_named("relu").function(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    if name not in _ACTIVATIONS:
        names = sorted(_ACTIVATIONS)
        raise OptionError(f"activation {name!r} is unknown: expected None or one of {', '.join(names)}{nearest(str(name), names)}")
    return _ACTIVATIONS[name]
