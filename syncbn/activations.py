"""Activations by name, for layers that apply one to their result. Owns the list of names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import elu, gelu, hardswish, leaky_relu, relu, relu6, silu

from syncbn.errors import OptionError
from syncbn.spelling import nearest


def _identity(x: Tensor) -> Tensor:
    return x


_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: _identity,
    "elu": elu,
    "gelu": gelu,
    "hardswish": hardswish,
    "leaky_relu": leaky_relu,
    "relu": relu,
    "relu6": relu6,
    "silu": silu,
}


def activation_named(name: str | None) -> Callable[[Tensor], Tensor]:
    """The function for a name; None is the identity.

    Raises:
        OptionError: no such activation.

    >>> activation_named("relu").__name__
    'relu'
    """
    if name not in _ACTIVATIONS:
        names = sorted(key for key in _ACTIVATIONS if key is not None)
        raise OptionError(f"activation {name!r} is unknown: expected None or one of {', '.join(names)}{nearest(str(name), names)}")
    return _ACTIVATIONS[name]
