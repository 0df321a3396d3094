"""BatchNorm to SyncBatchNorm and back, in place in the tree of modules.

Owns: the two public functions. The mechanics are in `adoption.py`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from syncbn.adoption import ORIGINAL_CLASS, OWN_STATE, adopt, replace_all, synchronized
from syncbn.collectives import ProcessGroup
from syncbn.errors import ConversionError
from syncbn.layer import SyncBatchNorm
from syncbn.local import BatchNorm


def convert_sync_batchnorm(module: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
    """Replace every BatchNorm1d/2d/3d (and torch.nn.SyncBatchNorm) in a model by a `SyncBatchNorm`.

    The new layers hold the same parameter and buffer objects, so that an optimizer made before goes on working, and keep eps, momentum,
    hooks, requires_grad, device, dtype and training flag. A layer used in several places stays one layer. ghost_bn, batch_renorm and
    switchable layers of this library stay what they are.

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
    return synchronized(module, process_group, SyncBatchNorm)


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
    return replace_all(module, replace)


def _plain(old: SyncBatchNorm | nn.SyncBatchNorm) -> nn.Module:
    kind: Any = old.__dict__.get(ORIGINAL_CLASS, BatchNorm)
    if issubclass(kind, nn.SyncBatchNorm):
        kind = BatchNorm
    new: nn.Module = kind.__new__(kind)  # a subclass may have a constructor of its own
    adopt(new, old)
    for name in OWN_STATE:
        new.__dict__.pop(name, None)
    return new
