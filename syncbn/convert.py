"""BatchNorm to SyncBatchNorm and back, in place in the tree of modules.

Owns: which modules are converted, and what they keep: parameters and buffers (the same tensors), hooks, modes, group.
Does not own the layer.
A module that is reached twice is converted once and stays shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from syncbn.collectives import ProcessGroup
from syncbn.errors import ConversionError
from syncbn.layer import SyncBatchNorm
from syncbn.norms.layers import BatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm)
_LAZY = (nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d)
_OWN_STATE = ("process_group", "activation", "unbiased_running_var", "_original_class")
_REMEMBERED = "_original_class"
Replace = Callable[[nn.Module], nn.Module]


def convert_sync_batchnorm(module: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
    """Replace every BatchNorm1d/2d/3d (and torch.nn.SyncBatchNorm) in a model by a `SyncBatchNorm`.

    The new layers hold the same parameter and buffer objects, so that an optimizer made before goes on working, and keep eps, momentum,
    hooks, requires_grad, device, dtype and training flag. A layer used in several places stays one layer.

    Args:
        module: a model, changed in place, or a single BatchNorm.
        process_group: ranks to synchronize with; None for all. A torch.nn.SyncBatchNorm keeps its own unless one is given here.
    Returns:
        The same model; or, for a single BatchNorm, its replacement.
    Raises:
        ConversionError: a subclass of BatchNorm with a forward of its own, which the conversion would lose; or a lazy BatchNorm
            that has not seen an input. Nothing is changed then.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> type(convert_sync_batchnorm(model)[1]).__name__
    'SyncBatchNorm'
    """

    def replace(old: nn.Module) -> nn.Module:
        if not isinstance(old, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  the family's only common class
            return old
        if isinstance(old, SyncBatchNorm):
            old.process_group = process_group if process_group is not None else old.process_group
            return old
        return _synchronized(old, process_group)

    _refuse_unconvertible(module)
    return _replace_all(module, replace)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every `SyncBatchNorm` by the torch class it came from, with the same parameters, buffers, hooks and modes.

    A layer that was built as a SyncBatchNorm, ours or torch's, has no such class and becomes one that takes any number of dimensions.

    Returns:
        The same model; or, for a single SyncBatchNorm, its replacement.
    Raises:
        ConversionError: a layer has an activation, which plain BatchNorm lacks. Nothing is changed then.

    >>> model = convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)))
    >>> type(revert_sync_batchnorm(model)[1]).__name__
    'BatchNorm1d'
    """

    def replace(old: nn.Module) -> nn.Module:
        return _plain(old) if isinstance(old, (SyncBatchNorm, nn.SyncBatchNorm)) else old

    for name, layer in module.named_modules():
        if isinstance(layer, SyncBatchNorm) and layer.activation is not None:
            raise ConversionError(
                f"layer {name!r} applies the activation {layer.activation!r}, which torch.nn.BatchNorm cannot: expected a layer "
                "with activation=None; put the activation into a module of its own first"
            )
    return _replace_all(module, replace)


def _replace_all(module: nn.Module, replace: Replace) -> nn.Module:
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


def _synchronized(old: nn.modules.batchnorm._BatchNorm, process_group: ProcessGroup | None) -> SyncBatchNorm:
    new = SyncBatchNorm(old.num_features, affine=False, track_running_stats=False)
    _adopt(new, old)
    new.process_group = process_group if process_group is not None else getattr(old, "process_group", None)
    new.__dict__[_REMEMBERED] = type(old)
    return new


def _plain(old: SyncBatchNorm | nn.SyncBatchNorm) -> nn.Module:
    kind: Any = old.__dict__.get(_REMEMBERED, BatchNorm)
    if issubclass(kind, nn.SyncBatchNorm):
        kind = BatchNorm
    new: nn.Module = kind.__new__(kind)  # a subclass may have a constructor of its own
    _adopt(new, old)
    for name in _OWN_STATE:
        new.__dict__.pop(name, None)
    return new


def _adopt(new: nn.Module, old: nn.Module) -> None:
    """Give `new` everything that `old` has: the very parameters, buffers, hooks (whose handles go on working) and flags."""
    own = {name: new.__dict__[name] for name in _OWN_STATE if name in new.__dict__}
    new.__dict__.update({**old.__dict__, **own})


def _refuse_unconvertible(module: nn.Module) -> None:
    known = (*_PLAIN, nn.SyncBatchNorm, SyncBatchNorm)
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
            continue
        kind, where = type(layer), repr(name) if name else "(the module itself)"
        if isinstance(layer, _LAZY):
            raise ConversionError(
                f"layer {where} is a {kind.__name__} that has not seen an input: expected its number of channels to be known; "
                "run one batch through the model first"
            )
        overrides = next((base for base in kind.__mro__ if "forward" in base.__dict__), None)
        expected = {nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, SyncBatchNorm}  # noqa: SLF001
        changed = "forward" in layer.__dict__ or layer._modules  # noqa: SLF001  patched, or parametrized
        if not isinstance(layer, known) or overrides not in expected or changed:
            raise ConversionError(
                f"layer {where} is a {kind.__module__}.{kind.__qualname__}, whose own forward would be lost: expected "
                "torch.nn.BatchNorm1d, 2d or 3d; replace it by one of these and put what its forward adds into a module of its own"
            )
