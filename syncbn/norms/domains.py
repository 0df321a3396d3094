"""`DomainBatchNorm`: statistics of several kinds of data, kept apart; `use_domain` chooses. Owns these two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup
from syncbn.errors import OptionError
from syncbn.layer import SyncBatchNorm
from syncbn.spelling import nearest


@final
class DomainBatchNorm(nn.Module):
    """One synchronized batch normalization per domain; the chosen one normalizes.

        y = (x - mean) / sqrt(var + eps) * weight_k + bias_k        (k the chosen domain)

    mean and var are those of all ranks' batches, in eval mode the running ones of the domain. `use_domain` chooses for a whole model;
    assigning to `domain` chooses for one layer, until further notice. The first domain is chosen at first. Each domain is a `SyncBatchNorm`
    in `layers`, which `layer_statistics`, `check_health` and `recalibrate` find (the latter re-estimates the chosen domain alone: adapting
    to a new domain is one call of it). Weights and biases of the other domains get gradients of 0, so that DistributedDataParallel needs no
    `find_unused_parameters`.

    Args:
        num_features: C.
        domains: their names, at least one; without dots, and no name of a torch.nn.ModuleDict method.
        eps, momentum, affine, process_group, device, dtype: as `SyncBatchNorm`.
    Shape: (N, C) or (N, C, *spatial) -> the same. N may differ between ranks and be 0 on some.

    Collectives: as `SyncBatchNorm`. Every rank must have chosen the same domain: two domains' statistics would add up otherwise, and
        nothing would say so.
    Source: Chang et al. 2019, "Domain-Specific Batch Normalization"; Li et al. 2016, "Revisiting Batch Normalization For Practical Domain
        Adaptation" (AdaBN).

    >>> layer = DomainBatchNorm(3, domains=("day", "night"))
    >>> with use_domain(layer, "night"):
    ...     y = layer(torch.randn(4, 3, 5))
    >>> [int(layer.layers[name].num_batches_tracked) for name in ("day", "night")]
    [0, 1]
    """

    def __init__(
        self,
        num_features: int,
        domains: Sequence[str] = (),
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        process_group: ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        names = _checked_names(domains)
        self.num_features = num_features
        self.layers = nn.ModuleDict(
            {
                name: SyncBatchNorm(num_features, eps, momentum, affine, process_group=process_group, device=device, dtype=dtype)
                for name in names
            }
        )
        self._domain = names[0]

    @property
    def domain(self) -> str:
        """The name of the chosen domain."""
        return self._domain

    @domain.setter
    def domain(self, name: str) -> None:
        if name not in self.layers:
            known = list(self.layers)
            raise OptionError(f"domain {name!r} is unknown: expected one of {', '.join(known)}{nearest(str(name), known)}")
        self._domain = name

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize x (N, C, *spatial) in the chosen domain; `mask` as `SyncBatchNorm`.

        Raises:
            ShapeError, BatchTooSmallError, GroupError: as `SyncBatchNorm`.

        Collectives: see the class.
        """
        y: Tensor = self.layers[self._domain](x, mask)
        if not torch.is_grad_enabled():
            return y
        others = [p for name, layer in self.layers.items() if name != self._domain for p in layer.parameters() if p.requires_grad]
        return _Unused.apply(y, *others) if others else y  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, domain={self._domain!r}"


@contextmanager
def use_domain(module: nn.Module, name: str) -> Iterator[None]:
    """Choose a domain in every `DomainBatchNorm` of a model, and the former ones again at the end.

    Run backward inside, too, where activation checkpointing runs the forward once more.

    Args:
        module: a model, possibly wrapped, or one layer.
        name: one of the layers' domains.
    Raises:
        OptionError: a layer does not have this domain, or there is no such layer. Nothing is changed then.

    >>> model = nn.Sequential(nn.Linear(4, 3), DomainBatchNorm(3, domains=("day", "night")))
    >>> with use_domain(model, "night"):
    ...     model[1].domain
    'night'
    >>> model[1].domain
    'day'
    """
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, DomainBatchNorm)}
    if not found:
        raise OptionError(
            f"{type(module).__name__} has no domain_bn layer: expected at least one to choose {name!r} in; build the model with it"
        )
    for path, layer in found.items():
        if name not in layer.layers:
            known = list(layer.layers)
            raise OptionError(
                f"domain {name!r} is unknown to layer {path!r}: expected one of {', '.join(known)}{nearest(str(name), known)}"
            )
    before = {path: layer.domain for path, layer in found.items()}
    try:
        for layer in found.values():
            layer.domain = name
        yield
    finally:
        for path, layer in found.items():
            layer.domain = before[path]


class _Unused(torch.autograd.Function):
    """The identity of its first argument, which gives the others gradients of 0."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (grads[0], *(torch.zeros_like(other) for other in ctx.saved_tensors))


def _checked_names(domains: Sequence[str]) -> list[str]:
    names = [domains] if isinstance(domains, str) else list(domains)
    bad = [name for name in names if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name)]
    if bad or not names or len(set(names)) < len(names):
        raise OptionError(
            f"domains {domains!r} cannot be names of layers: expected at least one name, each once, without dots, and none of "
            'torch.nn.ModuleDict itself; pass for example domains=("source", "target")'
        )
    return names
