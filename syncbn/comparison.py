"""How far the running statistics of two models, or of one model at two times, are apart. Pure: values in, values out.

Owns: the measures, and what is said where there is none. Does not own reading the statistics (`statistics.py`). The service computes the
same `difference` from two checkpoints without torch (`service/statistics.py`); tests hold the two to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from syncbn.collectives import unwrap
from syncbn.errors import InputError
from syncbn.statistics import LayerStatistics, entries, layer_statistics, summary


@dataclass(frozen=True)
class LayerComparison:
    """One layer of both models.

    Invariants: without a problem everything is given. With one the measures are None, and so are the differences unless both models have
    vectors of the same length.
    """

    name: str
    num_batches_tracked: tuple[int | None, int | None]  # of a and of b
    running_mean: Tensor | None  # (C,) float64, that of a minus that of b
    running_var: Tensor | None  # (C,) float64, that of a minus that of b
    mean_shift: float | None  # max over channels of |mean_a - mean_b| / sqrt(var_b + eps)
    variance_ratio: tuple[float, float] | None  # smallest and largest over channels of (var_a + eps) / (var_b + eps)
    distance: float | None  # symmetric Kullback-Leibler divergence of the channels as Gaussians, mean over channels
    problem: str | None = None

    def to_dict(self, *, vectors: bool = False) -> dict[str, Any]:
        """Plain values for JSON. `difference` is what the service answers under that name, with `vectors` including every entry."""
        given = {"running_mean": self.running_mean, "running_var": self.running_var}
        shown = {name: _plain(vector, vectors) for name, vector in given.items() if vector is not None}
        return {
            "name": self.name,
            "num_batches_tracked": dict(zip("ab", self.num_batches_tracked, strict=True)),
            "difference": shown or None,
            "mean_shift": self.mean_shift,
            "variance_ratio": None if self.variance_ratio is None else dict(zip(("min", "max"), self.variance_ratio, strict=True)),
            "distance": self.distance,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Comparison:
    """Two models. `layers` are those that both have, by name, in the order of a."""

    layers: dict[str, LayerComparison]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]

    def to_dict(self, *, vectors: bool = False) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "layers": [layer.to_dict(vectors=vectors) for layer in self.layers.values()],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }


Statistics = Mapping[str, LayerStatistics]


def compare_statistics(a: nn.Module | Statistics, b: nn.Module | Statistics) -> Comparison:
    """Compare the running statistics of two models, layer by layer; b is the reference.

        mean_shift = max_c |mean_a - mean_b| / sqrt(var_b + eps)        variance_ratio = min_c and max_c of v_a / v_b        (v = var + eps)
        distance = mean_c (KL(a|b) + KL(b|a)) = mean_c ((v_a / v_b + v_b / v_a + (mean_a - mean_b)^2 (1 / v_a + 1 / v_b)) / 2 - 1)

    eps, each model's own, is in every variance: what evaluation divides by is compared, and a dead channel equals itself. The distance is
    symmetric, 0 for equal statistics, and the same whatever unit a channel has, since scaling and shifting it in both models cancels. (The
    Wasserstein distance has the unit of the channel, so that a mean over channels would be that of the largest ones.) 0.01 is
    a shift of a tenth of a deviation throughout, or variances that differ by 15 percent; 1 is another kind of data.

    Args:
        a, b: models, wrapped by DistributedDataParallel or not, or what `layer_statistics` has returned for them: also of two times,
            or before and after `recalibrate`. Layers correspond by their names; kinds may differ, as before and after conversion.
    Returns:
        The comparison. A layer that cannot be measured says why in `problem`: other numbers of channels, no running statistics,
            entries that are not finite, or negative variances.
    Raises:
        InputError: the models have no layer in common.

    Source of the distance: Pan et al. 2018, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", after
        Li et al. 2016 (AdaBN). Deviation: eps.

    >>> import torch
    >>> before, after = (nn.Sequential(nn.BatchNorm1d(2)) for _ in range(2))
    >>> _ = after[0].running_mean.copy_(torch.tensor([0.5, 0.0]))
    >>> layer = compare_statistics(after, before).layers["0"]
    >>> round(layer.mean_shift, 3), layer.variance_ratio, round(layer.distance, 3)
    (0.5, (1.0, 1.0), 0.125)
    """
    ours, theirs = (layer_statistics(unwrap(each)) if isinstance(each, nn.Module) else each for each in (a, b))
    common = [name for name in ours if name in theirs]
    if not common:
        raise InputError(
            f"nothing to compare: a has the layers {_listed(ours)}, b {_listed(theirs)}: expected batch normalization layers of the same "
            "names; compare models of one architecture, and unwrap both alike"
        )
    return Comparison(
        layers={name: _compared(name, ours[name], theirs[name]) for name in common},
        only_in_a=tuple(name for name in ours if name not in theirs),
        only_in_b=tuple(name for name in theirs if name not in ours),
    )


def _compared(name: str, a: LayerStatistics, b: LayerStatistics) -> LayerComparison:
    tracked = (a.num_batches_tracked, b.num_batches_tracked)
    if a.running_mean is None or a.running_var is None or b.running_mean is None or b.running_var is None:
        missing = [which for which, layer in (("a", a), ("b", b)) if layer.running_mean is None]
        return LayerComparison(name, tracked, None, None, None, None, None, f"no running statistics in {' and '.join(missing)}")
    if a.num_channels != b.num_channels:
        return LayerComparison(name, tracked, None, None, None, None, None, f"{a.num_channels} channels in a, {b.num_channels} in b")
    mean_a, var_a, mean_b, var_b = (vector.double() for vector in (a.running_mean, a.running_var, b.running_mean, b.running_var))
    difference_C = mean_a - mean_b
    problem = _problem("a", mean_a, var_a, a.eps) or _problem("b", mean_b, var_b, b.eps)
    if problem is not None:
        return LayerComparison(name, tracked, difference_C, var_a - var_b, None, None, None, problem)
    v_a, v_b = var_a + a.eps, var_b + b.eps
    ratio_C = v_a / v_b
    distance_C = (ratio_C + 1 / ratio_C + difference_C.square() * (1 / v_a + 1 / v_b)) / 2 - 1
    return LayerComparison(
        name,
        tracked,
        difference_C,
        var_a - var_b,
        mean_shift=float((difference_C.abs() / v_b.sqrt()).max()),
        variance_ratio=(float(ratio_C.min()), float(ratio_C.max())),
        distance=max(float(distance_C.mean()), 0.0),
    )


def _problem(which: str, mean_C: Tensor, var_C: Tensor, eps: float) -> str | None:
    """Why these statistics are no Gaussians to compare, or None."""
    if unsound := int((~(mean_C.isfinite() & var_C.isfinite())).sum()):
        return f"{unsound} of {mean_C.numel()} channels of {which} are NaN or infinite"
    if negative := int((var_C < 0).sum()):
        return f"{negative} of {mean_C.numel()} variances of {which} are negative"
    return f"variance 0 with eps {eps:g} in {which}" if bool((var_C + eps <= 0).any()) else None


def _plain(vector: Tensor, whole: bool) -> dict[str, Any]:
    shown: dict[str, Any] = dict(summary(vector))
    return shown | {"values": entries(vector)} if whole else shown


def _listed(statistics: Statistics) -> str:
    names = [repr(name) for name in statistics]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "(none)"
