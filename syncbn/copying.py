"""Copies of layers that hold a process group, which is a handle of this process and cannot be copied or pickled.

Owns: what a copy has in the group's place. Used by layers with an attribute `process_group`.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

_Layer = TypeVar("_Layer", bound=nn.Module)


def copied(layer: _Layer, memo: dict[int, Any]) -> _Layer:
    """A deep copy that shares the process group, for `__deepcopy__`."""
    group = layer.__dict__["process_group"]
    if group is not None:
        memo[id(group)] = group
    twin = type(layer).__new__(type(layer))
    memo[id(layer)] = twin
    twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in layer.__dict__.items()})
    return twin


def picklable(layer: nn.Module) -> dict[str, Any]:
    """The state without the process group, for `__getstate__`: an unpickled layer synchronizes with all ranks."""
    return {**layer.__dict__, "process_group": None}
