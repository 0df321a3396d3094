"""Fold batch normalization into the convolution or linear layer before it, for inference.

Owns: the arithmetic of folding and the refusal of what cannot be folded. Does not own conversion (`convert.py`).
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from syncbn.adoption import replace_all
from syncbn.errors import ConversionError
from syncbn.layer import SyncBatchNorm
from syncbn.local import BatchNorm
from syncbn.norms.domains import DomainBatchNorm
from syncbn.norms.ghost import GhostBatchNorm
from syncbn.norms.layers import FrozenBatchNorm
from syncbn.norms.renorm import BatchRenorm

_Norm = nn.modules.batchnorm._BatchNorm | FrozenBatchNorm  # noqa: SLF001  the family's only common class
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(SyncBatchNorm, BatchNorm, FrozenBatchNorm, GhostBatchNorm, BatchRenorm),
)
# Folding rounds each weight once; outputs may differ by the roundings of a deep model, never by as much as a wrong fold.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1


def fold_batchnorm(module: nn.Module, example: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """A copy of a model in which no batch normalization is left: each is folded into the layer before it.

        weight' = weight * s        bias' = (bias - running_mean) * s + norm_bias        s = norm_weight / sqrt(running_var + eps)

    Folds a BatchNorm, SyncBatchNorm, frozen_bn, ghost_bn, batch_renorm, or the chosen domain of a domain_bn, that directly follows a
    convolution, transposed convolution or linear layer in a torch.nn.Sequential, or that torch.fx can trace to follow one anywhere in the
    model. Computed in float64 and rounded once. A linear layer is taken to have input (N, features): where it is not, its outputs are not
    the norm's channels, which an example shows.

    Args:
        module: a model in eval mode. It is not changed.
        example: the model's input, or several in a tuple: both models are run on it, and compared by `folding_difference`.
    Returns:
        A copy (a torch.fx.GraphModule where tracing was needed) whose outputs equal those of `module.eval()` up to rounding.
    Raises:
        ConversionError: the model is in training mode; or a layer cannot be folded: it follows nothing that it can be folded into, that
            layer's output is used elsewhere too, one of the two is used more than once, it has no running statistics, or an
            activation of its own. Names the layer. Or the outputs for the example differ by more than rounding; names the difference.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fold_batchnorm(model)
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    if module.training:
        raise ConversionError(
            f"{type(module).__name__} is in training mode: expected eval mode, where statistics are fixed; call .eval() first"
        )
    folded = replace_all(copy.deepcopy(module), lambda part: part.layers[part.domain] if isinstance(part, DomainBatchNorm) else part)
    _fold_sequences(folded)
    if any(isinstance(layer, _Norm) for layer in folded.modules()):
        folded = _fold_traced(folded)
    if example is not None:
        _refuse_difference(module, folded, example if isinstance(example, tuple) else (example,))
    return folded


def folding_difference(module: nn.Module, folded: nn.Module, *inputs: Any) -> float:
    """How far a folded model's output is from the original's: the largest difference, relative to the largest output.

    Args:
        module, folded: two models in eval mode whose output is a tensor.
        inputs: of both.
    Returns:
        About 1e-6 for float32; infinity where one output is not finite and the other is, or shapes differ.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)).double().eval()
    >>> folding_difference(model, fold_batchnorm(model), torch.randn(4, 3, dtype=torch.float64)) < 1e-12
    True
    """
    with torch.no_grad():
        wanted, found = module(*inputs), folded(*inputs)
    if wanted.shape != found.shape:
        return float("inf")
    if wanted.numel() == 0 or torch.equal(wanted, found):
        return 0.0
    difference = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float(difference) if difference.isfinite() else float("inf")


def _refuse_difference(module: nn.Module, folded: nn.Module, inputs: tuple[Any, ...]) -> None:
    difference = folding_difference(module, folded, *inputs)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    tolerance = _TOLERANCES.get(dtype, _HALF_TOLERANCE)
    if difference > tolerance:
        raise ConversionError(
            f"the folded {type(module).__name__} differs by {difference:.1e} of its largest output: expected at most {tolerance:.0e} "
            f"for {dtype}; a linear layer whose input has more than two dimensions cannot be folded into, and a running variance near 0 "
            "magnifies rounding: keep the norm there"
        )


def _fold_sequences(module: nn.Module) -> None:
    """Fold neighbours within every Sequential whose children are used once."""
    uses = [id(child) for part in module.modules() for child in part._modules.values()]  # noqa: SLF001  named_children hides repeats
    for part in module.modules():
        if type(part) is not nn.Sequential:
            continue
        for (_, before), (name, norm) in pairwise(list(part._modules.items())):  # noqa: SLF001
            once = uses.count(id(before)) == 1 and uses.count(id(norm)) == 1
            if isinstance(norm, _Norm) and before is not None and once and _obstacle(before, norm) is None:
                _absorb(before, norm)
                part._modules[name] = nn.Identity()  # noqa: SLF001


def _fold_traced(module: nn.Module) -> nn.Module:
    """Fold along the edges of the traced graph; every norm that is left is refused by name."""
    from torch import fx  # slow to import, rarely needed

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, (_Norm, _ConvNd, nn.Linear)) or super().is_leaf_module(m, module_qualified_name)

    try:
        traced = fx.GraphModule(module, Tracer().trace(module))
    except Exception as error:
        left = [name for name, layer in module.named_modules() if isinstance(layer, _Norm)]
        raise ConversionError(
            f"layers {', '.join(left)} follow no layer in a Sequential and {type(module).__name__} cannot be traced ({error}): expected a "
            "model that torch.fx can trace, or conv and norm as neighbours in a Sequential; rewrite the forward without branches on values"
        ) from error
    for node in [n for n in traced.graph.nodes if n.op == "call_module"]:
        norm = traced.get_submodule(str(node.target))
        if isinstance(norm, _Norm):
            _fold_node(traced, node, norm)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _fold_node(traced: torch.fx.GraphModule, node: torch.fx.Node, norm: _Norm) -> None:
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    before = traced.get_submodule(str(source.target)) if source.op == "call_module" else None
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    reason = (
        f"it follows {source.target!s}, which is no layer"
        if before is None
        else "its output or that of the layer before it is used elsewhere too"
        if len(source.users) > 1 or calls.count(node.target) > 1 or calls.count(source.target) > 1
        else _obstacle(before, norm)
    )
    if reason is not None or before is None:
        raise ConversionError(
            f"layer {node.target!s} ({type(norm).__name__}) cannot be folded: {reason}: expected a norm with running statistics right "
            "after one convolution, transposed convolution or linear layer; keep it unfolded, or change the model"
        )
    _absorb(before, norm)
    node.replace_all_uses_with(source)
    traced.graph.erase_node(node)


def _obstacle(before: nn.Module, norm: _Norm) -> str | None:
    """Why these two cannot be folded; None if they can."""
    # Exact types: a subclass may do something else with its weight, and a parametrized layer is one.
    if type(before) not in _LAYERS or type(norm) not in _NORMS:
        return f"a {type(norm).__name__} after a {type(before).__name__} may be more than these names say"
    outputs = before.out_features if isinstance(before, nn.Linear) else before.out_channels
    if outputs != norm.num_features:
        return f"it has {norm.num_features} channels and the layer before it {outputs} outputs"
    if norm.running_mean is None:
        return "it has no running statistics"
    if norm.training and not isinstance(norm, FrozenBatchNorm):
        return "it is in training mode, in which it takes the batch's statistics"
    if isinstance(norm, SyncBatchNorm) and norm.activation is not None:
        return f"it applies the activation {norm.activation!r}"
    return None


def _absorb(before: nn.Module, norm: _Norm) -> None:
    """Scale and shift the layer's own weight and bias by what the norm would do."""
    assert isinstance(before, (_ConvNd, nn.Linear))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale_C = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_C = scale_C * norm.weight.double()
    bias_C = torch.zeros_like(scale_C) if before.bias is None else before.bias.double()
    bias_C = (bias_C - norm.running_mean.double()) * scale_C
    if norm.bias is not None:
        bias_C = bias_C + norm.bias.double()
    dtype, requires_grad = before.weight.dtype, before.weight.requires_grad
    before.weight = nn.Parameter((before.weight.double() * _along_outputs(before, scale_C)).detach().to(dtype), requires_grad)
    before.bias = nn.Parameter(bias_C.detach().to(dtype), requires_grad)


def _along_outputs(layer: _ConvNd | nn.Linear, scale_C: Tensor) -> Tensor:
    """The scale shaped to multiply the layer's weight: outputs come first, but second and by groups in a transposed convolution."""
    tail = [1] * (layer.weight.dim() - 2)
    if not isinstance(layer, _ConvTransposeNd):
        return scale_C.view(-1, 1, *tail)
    groups = layer.groups
    scale = scale_C.view(groups, 1, -1).expand(groups, layer.in_channels // groups, -1)
    return scale.reshape(layer.in_channels, -1, *tail)
