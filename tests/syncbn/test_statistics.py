"""Reading a model's statistics."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from syncbn import SyncBatchNorm, layer_statistics


def test_every_batch_norm_is_listed_by_name() -> None:
    """All kinds of batch norm appear, in order, a shared one once, with or without running statistics; other layers do not."""
    shared = SyncBatchNorm(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.BatchNorm2d(3, track_running_stats=False), shared, nn.GroupNorm(1, 3))
    statistics = layer_statistics(model)
    assert [(s.name, s.kind) for s in statistics.values()] == [("1", "SyncBatchNorm"), ("2", "BatchNorm2d")]
    assert list(statistics) == ["1", "2"]
    assert statistics["2"].running_mean is None
    assert statistics["2"].num_batches_tracked is None


def test_values_are_copies() -> None:
    """What was read does not change when training goes on, and cannot be assigned to."""
    layer = nn.BatchNorm1d(2, momentum=1.0)
    layer(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    read = layer_statistics(layer)[""]
    layer(torch.zeros(2, 2))
    assert read.running_mean.tolist() == [1.0, 3.0]
    assert read.running_var.tolist() == [2.0, 8.0]
    assert read.num_batches_tracked == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.eps = 1.0


def test_plain_values_for_json() -> None:
    """The summary and the vectors survive a trip through JSON."""
    layer = nn.BatchNorm1d(2, momentum=1.0)
    layer(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    read = layer_statistics(nn.Sequential(layer))["0"]
    summary = json.loads(json.dumps(read.to_dict()))
    assert summary["running_mean"] == {"min": 1.0, "max": 3.0, "mean": 2.0}
    assert json.loads(json.dumps(read.to_dict(vectors=True)))["running_var"] == [2.0, 8.0]


def test_what_is_not_finite_is_none_in_json() -> None:
    """JSON has no NaN: the summary of a spoiled vector is None, and the spoiled entry."""
    layer = nn.BatchNorm1d(2)
    layer.running_mean[1] = torch.nan
    read = layer_statistics(layer)[""]
    assert read.to_dict()["running_mean"] == {"min": None, "max": None, "mean": None}
    assert read.to_dict(vectors=True)["running_mean"] == [0.0, None]
    json.dumps([read.to_dict(), read.to_dict(vectors=True)], allow_nan=False)
