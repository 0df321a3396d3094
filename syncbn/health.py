"""Whether running statistics can be trusted for inference. Pure: values in, findings out.

Owns: the codes and their severity. Does not own reading the statistics (`statistics.py`).

| code | severity | means |
|---|---|---|
| not_finite | error | NaN or infinity in a running statistic, weight or bias |
| variance_not_positive | error | a running variance of 0 or less: inference divides by sqrt(eps), or takes the root of a negative number |
| variance_below_eps | warning | a running variance in (0, eps]: eps, not the data, decides the scale |
| dead_channels | warning | running mean exactly 0 and variance at most eps: the channel's input was always 0 |
| never_updated | error | no batch was tracked (a warning where the statistics differ from the initial ones: they came from elsewhere) |
| still_initial | error | mean 0 and variance 1 throughout although batches were tracked |
| weight_near_zero | warning | weights of at most 1e-6: the channel's output hardly depends on its input |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from syncbn.statistics import LayerStatistics

_NEAR_ZERO = 1e-6


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one layer. `severity` is "error" (the layer cannot be trusted) or "warning" (worth a look)."""

    layer: str
    code: str
    message: str
    severity: str

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {"layer": self.layer, "code": self.code, "message": self.message, "severity": self.severity}


@dataclass(frozen=True)
class HealthReport:
    """Everything found. `status` is "unhealthy" if any finding is an error, else "healthy"."""

    status: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"status": self.status, "findings": [finding.to_dict() for finding in self.findings]}


def check_health(statistics: Mapping[str, LayerStatistics] | Iterable[LayerStatistics]) -> HealthReport:
    """Judge the statistics of a model.

    Args:
        statistics: what `layer_statistics` returned, or its values.
    Returns:
        The report; the module's docstring lists the codes. Layers without running statistics are judged by their weights only.

    >>> import torch, syncbn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> report = check_health(syncbn.layer_statistics(model))
    >>> report.status, [(f.layer, f.code) for f in report.findings]
    ('unhealthy', [('1', 'never_updated')])
    """
    layers = statistics.values() if isinstance(statistics, Mapping) else statistics
    findings = tuple(finding for layer in layers for finding in _findings(layer))
    return HealthReport("unhealthy" if any(f.severity == "error" for f in findings) else "healthy", findings)


def _findings(layer: LayerStatistics) -> Iterator[Finding]:
    yield from _not_finite(layer)
    yield from _never_moved(layer)
    yield from _small_variances(layer)
    if layer.weight is not None and (count := _count(layer.weight.abs() <= _NEAR_ZERO)):
        yield Finding(
            layer.name, "weight_near_zero", f"{count} of {layer.num_channels} weights are at most {_NEAR_ZERO:g} in size", "warning"
        )


def _not_finite(layer: LayerStatistics) -> Iterator[Finding]:
    for name in ("running_mean", "running_var", "weight", "bias"):
        vector: Tensor | None = getattr(layer, name)
        if vector is not None and (count := _count(~vector.isfinite())):
            yield Finding(
                layer.name,
                "not_finite",
                f"{count} of {layer.num_channels} entries of {name} are NaN or infinite; go back to an earlier checkpoint",
                "error",
            )


def _never_moved(layer: LayerStatistics) -> Iterator[Finding]:
    mean, var, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if mean is None or var is None:
        return
    initial = bool((mean == 0).all() and (var == 1).all())
    if tracked == 0 and initial:
        yield Finding(layer.name, "never_updated", "no batch was tracked; train, or recalibrate", "error")
    elif tracked == 0:
        yield Finding(
            layer.name,
            "never_updated",
            "no batch was tracked, yet the statistics are not the initial ones: they came from elsewhere",
            "warning",
        )
    elif initial:
        yield Finding(layer.name, "still_initial", f"mean 0 and variance 1 throughout after {tracked} batches; recalibrate", "error")


def _small_variances(layer: LayerStatistics) -> Iterator[Finding]:
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        return
    cases = (
        ("variance_not_positive", var <= 0, "running variances are 0 or less; recalibrate", "error"),
        ("variance_below_eps", (var > 0) & (var <= layer.eps), f"running variances are at most eps = {layer.eps:g}", "warning"),
        ("dead_channels", (mean == 0) & (var <= layer.eps), "channels had an input of 0 throughout", "warning"),
    )
    for code, channels, text, severity in cases:
        if count := _count(channels):
            yield Finding(layer.name, code, f"{count} of {layer.num_channels} {text} (channels {_first(channels)})", severity)


def _count(condition: Tensor) -> int:
    return int(condition.sum())


def _first(channels: Tensor) -> str:
    numbers: list[int] = [int(n) for n in channels.nonzero().flatten()[:5]]
    return ", ".join(map(str, numbers)) + (", ..." if _count(channels) > len(numbers) else "")
