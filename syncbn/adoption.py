"""The mechanics of replacing modules: every reference to a module, everything that it has, and what must not be replaced.

Owns: which batch norms can become synchronized ones, and what they keep. Does not own the synchronized layer (`layer.py`), whose class it
is given, or the public functions (`convert.py`). A module that is reached twice is replaced once and stays shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from syncbn.collectives import ProcessGroup
from syncbn.errors import ConversionError
from syncbn.family import is_chosen_kind
from syncbn.local import BatchNorm

ORIGINAL_CLASS = "_original_class"
OWN_STATE = ("process_group", "activation", "unbiased_running_var", ORIGINAL_CLASS)
_LAZY = (nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d)
_Any = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  the family's only common class


def synchronized(module: nn.Module, process_group: ProcessGroup | None, kind: type[Any]) -> nn.Module:
    """Replace every batch norm in a model by a layer of class `kind`, the synchronized one.

    Raises:
        ConversionError: see `refuse_unconvertible`. Nothing is changed then.
    """

    def replace(old: nn.Module) -> nn.Module:
        if not isinstance(old, _Any) or is_chosen_kind(old):
            return old
        new = old
        if not isinstance(old, kind):
            new = kind(old.num_features, affine=False, track_running_stats=False)
            adopt(new, old)
            new.__dict__["process_group"] = getattr(old, "process_group", None)
            new.__dict__[ORIGINAL_CLASS] = type(old)
        if process_group is not None:
            new.__dict__["process_group"] = process_group
        return new

    refuse_unconvertible(module, kind)
    return replace_all(module, replace)


def replace_all(module: nn.Module, replace: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace every reference to every module, one replacement per object."""
    replacements: dict[int, nn.Module] = {}
    parents = list(module.modules())
    for old in parents:
        replacements[id(old)] = replace(old)
    for parent in parents:
        for attribute, child in list(parent._modules.items()):  # noqa: SLF001  named_children hides second references
            if child is not None and replacements[id(child)] is not child:
                parent._modules[attribute] = replacements[id(child)]  # noqa: SLF001
    return replacements[id(module)]


def adopt(new: nn.Module, old: nn.Module) -> None:
    """Give `new` everything that `old` has: the very parameters, buffers, hooks (whose handles go on working) and flags."""
    own = {name: new.__dict__[name] for name in OWN_STATE if name in new.__dict__}
    new.__dict__.update({**old.__dict__, **own})


def refuse_unconvertible(module: nn.Module, kind: type[Any]) -> None:
    """Refuse, by name, layers that would lose something: lazy ones, and those with a forward of their own.

    Raises:
        ConversionError: there is one.
    """
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm, nn.SyncBatchNorm, kind)
    for name, layer in module.named_modules():
        if not isinstance(layer, _Any) or is_chosen_kind(layer):
            continue
        own, where = type(layer), repr(name) if name else "(the module itself)"
        if isinstance(layer, _LAZY):
            raise ConversionError(
                f"layer {where} is a {own.__name__} that has not seen an input: expected its number of channels to be known; "
                "run one batch through the model first"
            )
        overrides = next((base for base in own.__mro__ if "forward" in base.__dict__), None)
        expected = {_Any, nn.SyncBatchNorm, kind}
        changed = "forward" in layer.__dict__ or layer._modules  # noqa: SLF001  patched, or parametrized
        if not isinstance(layer, known) or overrides not in expected or changed:
            raise ConversionError(
                f"layer {where} is a {own.__module__}.{own.__qualname__}, whose own forward would be lost: expected "
                "torch.nn.BatchNorm1d, 2d or 3d; replace it by one of these and put what its forward adds into a module of its own"
            )
