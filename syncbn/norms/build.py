"""`build_norm`: a normalization layer by name. Owns the names and which options each takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from syncbn.errors import OptionError
from syncbn.layer import SyncBatchNorm
from syncbn.local import BatchNorm
from syncbn.norms.conditional import ConditionalBatchNorm
from syncbn.norms.domains import DomainBatchNorm
from syncbn.norms.ghost import GhostBatchNorm
from syncbn.norms.layers import FrozenBatchNorm, InstanceNorm, LayerNorm
from syncbn.norms.renorm import BatchRenorm
from syncbn.norms.switchable import SwitchableNorm
from syncbn.spelling import nearest


def build_norm(kind: str, num_features: int, **options: Any) -> nn.Module:
    """A normalization layer for (N, C) or (N, C, *spatial).

    Args:
        kind: one of
            sync_bn: over all ranks' batches (`SyncBatchNorm`; eps, momentum, affine, track_running_stats, process_group, activation, ...);
            batch_norm: over this rank's batch only (as torch.nn.BatchNorm1d/2d/3d; eps, momentum, affine, track_running_stats);
            group_norm: over groups of channels of one sample (torch.nn.GroupNorm; num_groups, eps, affine). num_groups defaults to the
                greatest common divisor of 32 and num_features;
            layer_norm: over the channels of one position (eps, affine);
            instance_norm: over the space of one channel of one sample (eps, affine);
            frozen_bn: fixed statistics, weight and bias (eps);
            ghost_bn: over virtual batches of this rank's (virtual_batch_size, eps, momentum, affine);
            batch_renorm: over all ranks' batches, corrected towards the running statistics (r_max, d_max, start, r_end, d_end, ...);
            domain_bn: sync_bn with statistics, weight and bias per domain, chosen by `use_domain` (domains, ...);
            conditional_bn: sync_bn with weight and bias by class or vector, `layer(x, condition)` (num_classes or condition_size, ...);
            switchable: a learned mixture of instance, layer and sync_bn statistics (eps, momentum, affine, ...).
            docs/norms.md says when to use which.
        num_features: C.
        options: arguments of the layer, and device and dtype for all kinds.
    Raises:
        OptionError: unknown kind or option, or num_groups that does not divide num_features; names what was expected and the nearest name.

    >>> build_norm("group_norm", 48).num_groups
    16
    >>> build_norm("sync_nb", 48)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    syncbn.errors.OptionError: norm kind 'sync_nb' is unknown: expected one of batch_norm, ...; did you mean 'sync_bn'?
    """
    if kind not in _KINDS:
        raise OptionError(f"norm kind {kind!r} is unknown: expected one of {', '.join(sorted(_KINDS))}{nearest(str(kind), sorted(_KINDS))}")
    if not isinstance(num_features, int) or num_features < 1:
        raise OptionError(f"num_features {num_features!r} of {kind} is not a positive integer: expected the number of channels; pass it")
    build = _KINDS[kind]
    known = sorted(set(inspect.signature(build).parameters) - {"num_features"})
    for name in options:
        if name not in known:
            raise OptionError(f"option {name!r} of {kind} is unknown: expected one of {', '.join(known)}{nearest(name, known)}")
    return build(num_features, **options)


def norm_kinds() -> tuple[str, ...]:
    """The names that `build_norm` knows, sorted.

    >>> "sync_bn" in norm_kinds()
    True
    """
    return tuple(sorted(_KINDS))


def _group_norm(
    num_features: int, num_groups: int | None = None, *, eps: float = 1e-5, affine: bool = True, device: Any = None, dtype: Any = None
) -> nn.Module:
    groups = math.gcd(32, num_features) if num_groups is None else num_groups
    if groups < 1 or num_features % groups:
        divisors = [d for d in range(1, num_features + 1) if num_features % d == 0]
        raise OptionError(
            f"num_groups {groups} does not divide num_features {num_features}: expected one of {divisors}; choose one of these"
        )
    return nn.GroupNorm(groups, num_features, eps, affine, device=device, dtype=dtype)


_KINDS: dict[str, Callable[..., nn.Module]] = {
    "batch_norm": BatchNorm,
    "batch_renorm": BatchRenorm,
    "conditional_bn": ConditionalBatchNorm,
    "domain_bn": DomainBatchNorm,
    "frozen_bn": FrozenBatchNorm,
    "ghost_bn": GhostBatchNorm,
    "group_norm": _group_norm,
    "instance_norm": InstanceNorm,
    "layer_norm": LayerNorm,
    "switchable": SwitchableNorm,
    "sync_bn": SyncBatchNorm,
}
