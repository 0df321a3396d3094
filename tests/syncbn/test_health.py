"""Every code of the health check, each with the healthy twin that lacks it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from syncbn import LayerStatistics, check_health, layer_statistics


def healthy() -> LayerStatistics:
    """A layer with nothing wrong."""
    layer = nn.BatchNorm1d(4)
    layer(torch.randn(64, 4))
    return replace(layer_statistics(layer)[""], name="stem.bn")


CASES = [
    ("not_finite", "unhealthy", {"running_mean": torch.tensor([0.1, torch.nan, 0.2, 0.3])}),
    ("not_finite", "unhealthy", {"bias": torch.tensor([0.1, torch.inf, 0.2, 0.3])}),
    ("variance_not_positive", "unhealthy", {"running_var": torch.tensor([1.0, 2.0, -1e-3, 1.0])}),
    ("variance_not_positive", "unhealthy", {"running_var": torch.tensor([1.0, 2.0, 0.0, 1.0])}),
    ("variance_below_eps", "healthy", {"running_var": torch.tensor([1.0, 2.0, 1e-6, 1.0])}),
    ("dead_channels", "healthy", {"running_mean": torch.tensor([1.0, 0.0, 1.0, 1.0]), "running_var": torch.tensor([1.0, 1e-6, 1.0, 1.0])}),
    ("never_updated", "unhealthy", {"num_batches_tracked": 0, "running_mean": torch.zeros(4), "running_var": torch.ones(4)}),
    ("never_updated", "healthy", {"num_batches_tracked": 0}),
    ("still_initial", "unhealthy", {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}),
    ("weight_near_zero", "healthy", {"weight": torch.tensor([1.0, 0.0, 1.0, 1.0])}),
    # At the limits themselves: at most eps, at most 1e-6, of either sign.
    ("variance_below_eps", "healthy", {"eps": 0.25, "running_var": torch.tensor([1.0, 2.0, 0.25, 1.0])}),
    ("weight_near_zero", "healthy", {"weight": torch.tensor([1.0, -9e-7, 1.0, 1.0])}),
]


@pytest.mark.parametrize(("code", "status", "changes"), CASES)
def test_each_code_is_found(code, status, changes) -> None:
    """The defect is found in its layer under its code, decides the status, and is absent from the healthy twin."""
    report = check_health([replace(healthy(), **changes)])
    found = {finding.code: finding for finding in report.findings}
    assert code in found
    assert found[code].layer == "stem.bn"
    assert report.status == status
    assert check_health([healthy()]).findings == ()
    assert check_health([healthy()]).status == "healthy"


def test_just_inside_the_limits_nothing_is_found() -> None:
    """A variance above eps, a weight above 1e-6, and a mean of 0 with a real variance are no findings."""
    sound = {"eps": 0.25, "running_var": torch.tensor([1.0, 2.0, 0.2501, 1.0]), "weight": torch.tensor([1.0, -2e-6, 1.0, 1.0])}
    assert check_health([replace(healthy(), running_mean=torch.tensor([1.0, 0.0, 1.0, 1.0]), **sound)]).findings == ()


def test_messages_name_channels_and_counts() -> None:
    """A finding says how many channels, and which."""
    (finding,) = check_health({"bn": replace(healthy(), running_var=torch.tensor([1.0, -1.0, 1.0, -2.0]))}).findings
    assert finding.message.startswith("2 of 4 running variances are 0 or less")
    assert finding.message.endswith("(channels 1, 3)")


def test_layers_without_statistics_are_fine() -> None:
    """A layer that tracks nothing has nothing to be wrong."""
    report = check_health(layer_statistics(nn.BatchNorm1d(3, track_running_stats=False)))
    assert (report.status, report.findings) == ("healthy", ())


def test_a_report_is_json() -> None:
    """The report survives a trip through JSON."""
    report = check_health([replace(healthy(), num_batches_tracked=0)])
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["code"] == "never_updated"
