"""Batch normalization of other frameworks: their names and conventions, and how they become ours.

Owns: the table of conventions and `import_statistics`. Does not own reading other frameworks' files: arrays come in by name.

| framework | weight | bias | running_mean | running_var | its momentum m, here 1 - m | its eps | its running variance |
|---|---|---|---|---|---|---|---|
| keras (TensorFlow) | gamma | beta | moving_mean | moving_variance | 0.99, here 0.01 | 1e-3 | biased (TensorFlow's fused kernel:
unbiased) | | flax | scale | bias | mean | var | 0.99, here 0.01 | 1e-5 | biased |
| paddle | weight | bias | _mean | _variance | 0.9, here 0.1 | 1e-5 | biased |

Their momentum is the weight of the past, torch's that of the new batch. A biased running variance changes nothing in evaluation, which
takes what is stored; it matters where training goes on, and there `unbiased_running_var=False` of `SyncBatchNorm` goes on as they did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.errors import InputError, OptionError, ShapeError
from syncbn.norms.layers import FrozenBatchNorm
from syncbn.spelling import nearest

_BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  the family's only common class
_Layer = _BatchNorm | FrozenBatchNorm
_MOST_NAMED = 10


@dataclass(frozen=True)
class Convention:
    """How a framework names and updates batch normalization. `names` is from its names to torch's; `momentum` is its own default."""

    names: Mapping[str, str]
    momentum: float
    eps: float


_FIELDS = ("weight", "bias", "running_mean", "running_var")
CONVENTIONS = {
    "flax": Convention(dict(zip(("scale", "bias", "mean", "var"), _FIELDS, strict=True)), 0.99, 1e-5),
    "keras": Convention(dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), _FIELDS, strict=True)), 0.99, 1e-3),
    "paddle": Convention(dict(zip(("weight", "bias", "_mean", "_variance"), _FIELDS, strict=True)), 0.9, 1e-5),
}
_COLLECTIONS = ("params", "batch_stats")  # of Flax


def import_statistics(
    module: nn.Module,
    arrays: Mapping[str, Any],
    framework: str,
    *,
    names: Mapping[str, str] | None = None,
    momentum: float | None = None,
    eps: float | None = None,
    unbiased_running_var: bool = False,
) -> tuple[str, ...]:
    """Give every batch normalization layer of a model the statistics, weight and bias that another framework has for it.

        weight, bias, running_mean, running_var = arrays by their names        momentum = 1 - (momentum there)        eps = eps there

    Written in place; num_batches_tracked stays. Names may be joined by "/" or "."; a ":0" at the end (TensorFlow) and "params" or
    "batch_stats" at the beginning (Flax) do not count. Arrays of other layers are ignored.

    Args:
        module: a model, or one layer, whose arrays have then no prefix. Layers without running statistics are left alone.
        arrays: by name, as tensors or what `torch.as_tensor` takes.
        framework: "keras", "flax" or "paddle".
        names: the other framework's name of a layer by its name here, where the two differ.
        momentum, eps: as configured *there*; None is the framework's default, in the table of this module.
        unbiased_running_var: for layers that have this option: which variance to go on with.
    Returns:
        The names of the layers written, in the order of the modules.
    Raises:
        OptionError: an unknown framework, momentum outside [0, 1], or `names` of no layer.
        InputError: arrays are missing, or there is a weight or bias for a layer without; names each.
        ShapeError: arrays have another shape than (C,); names each. Nothing is changed in any of these cases.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    >>> theirs = {f"bn/{name}:0": torch.ones(2) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    >>> import_statistics(model, theirs, "keras", names={"1": "bn"})
    ('1',)
    >>> model[1].running_mean, round(model[1].momentum, 9), model[1].eps
    (tensor([1., 1.]), 0.01, 0.001)
    """
    convention = _convention(framework, momentum)
    layers = _layers_of(module, names or {})
    found = _matched(layers, torch_names(arrays, framework), convention)
    for name, (_, layer) in layers.items():
        _write(layer, found[name], convention.eps if eps is None else eps)
        if hasattr(layer, "momentum"):
            layer.momentum = 1 - (convention.momentum if momentum is None else momentum)
        if hasattr(layer, "unbiased_running_var"):
            layer.__dict__["unbiased_running_var"] = unbiased_running_var
    return tuple(layers)


def _convention(framework: str, momentum: float | None) -> Convention:
    if framework not in CONVENTIONS:
        known = sorted(CONVENTIONS)
        raise OptionError(f"framework {framework!r} is unknown: expected one of {', '.join(known)}{nearest(str(framework), known)}")
    if momentum is not None and not 0 <= momentum <= 1:
        raise OptionError(
            f"momentum {momentum} of {framework} is no weight of the past: expected a number from 0 to 1; pass its own, such as 0.99"
        )
    return CONVENTIONS[framework]


def _layers_of(module: nn.Module, names: Mapping[str, str]) -> dict[str, tuple[str, _Layer]]:
    """By name here: the name there, and the layer."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _Layer) and layer.running_mean is not None}
    for name in names:
        if name not in layers:
            raise OptionError(
                f"names has {name!r}, which is no layer with running statistics: expected names of layers here{nearest(name, layers)}"
            )
    return {name: (names.get(name, name), layer) for name, layer in layers.items()}


def torch_names(arrays: Mapping[str, Any], framework: str) -> dict[str, Any]:
    """The same arrays under torch's names; those that are none of batch normalization keep theirs.

    >>> sorted(torch_names({"params/a/bn/scale": 1, "batch_stats/a/bn/mean": 2}, "flax").items())
    [('a.bn.running_mean', 2), ('a.bn.weight', 1)]
    """
    convention, renamed = CONVENTIONS[framework], {}
    for name, array in arrays.items():
        *path, last = name.removesuffix(":0").replace("/", ".").split(".")
        if framework == "flax" and path and path[0] in _COLLECTIONS:
            path = path[1:]
        renamed[".".join((*path, convention.names.get(last, last)))] = array
    return renamed


def _matched(layers: Mapping[str, tuple[str, _Layer]], arrays: Mapping[str, Any], convention: Convention) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer by torch's names, or errors that name what is missing, too much, or misshapen."""
    missing: list[str] = []
    surplus: list[str] = []
    misshapen: list[str] = []
    found: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
    for name, (there, layer) in layers.items():
        prefix = there.replace("/", ".")
        for their, ours in convention.names.items():
            array = arrays.get(f"{prefix}.{ours}" if prefix else ours)
            label, wanted = f"{there}/{their}".removeprefix("/"), getattr(layer, ours)
            if (array is None) != (wanted is None):
                (missing if array is None else surplus).append(label)
            elif array is not None:
                found[name][ours] = tensor = torch.as_tensor(array)
                if tensor.shape != wanted.shape:
                    misshapen.append(f"{label} of shape {tuple(tensor.shape)} for {tuple(wanted.shape)}")
    if missing:
        known = [name.removesuffix(".running_var") for name in arrays if name.endswith(".running_var")]
        raise InputError(
            f"{len(missing)} arrays are missing: {_listed(missing)}: expected one for each statistic, weight and bias of the layers here; "
            f"there, layers are {_listed(known)}: give their names in `names`, and ones or zeros where they have no weight or bias"
        )
    if surplus:
        raise InputError(f"{_listed(surplus)} have no place: expected layers with affine=True; build them so, or leave these arrays out")
    if misshapen:
        raise ShapeError(f"{len(misshapen)} arrays do not fit: {_listed(misshapen)}: expected (num_features,); check which layer is which")
    return found


def _write(layer: _Layer, tensors: Mapping[str, Tensor], eps: float) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(layer, name).copy_(tensor)
    layer.eps = eps


def _listed(entries: list[str]) -> str:
    return ", ".join(entries[:_MOST_NAMED]) + (", ..." if len(entries) > _MOST_NAMED else "")
