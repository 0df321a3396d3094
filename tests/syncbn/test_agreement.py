"""assert_synchronized: it passes where ranks agree and names what differs where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncbn import OutOfSyncError, assert_synchronized


def compare(rank: int, world_size: int, changed: str) -> str:
    """Change something on one rank, or nothing, and return what is said about it."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, dtype=torch.float64), nn.BatchNorm1d(4))
    model[1].running_mean.fill_(torch.nan)
    if changed == "mean" and rank == 1:
        model[1].running_mean[2] = 1.0
    if changed == "count":
        model[2].num_batches_tracked.fill_(rank)
    if changed == "layers" and rank == 1:
        model.append(nn.BatchNorm1d(1))
    try:
        assert_synchronized(model)
    except OutOfSyncError as difference:
        return str(difference)
    return ""


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ("mean", "1 buffers differ between ranks: layer '1' running_mean on rank 1 differs from rank 0"),
        ("count", "layer '2' num_batches_tracked on ranks 1, 2 differs from rank 0"),
        ("layers", "different amounts of normalization state"),
    ],
)
def test_differences_are_named_on_every_rank(ranks, changed, text) -> None:
    """Layer, buffer and ranks are named, to all ranks alike; without the change nothing is raised, equal NaN included."""
    messages = ranks.run(3, compare, changed)
    assert all(text in message for message in messages)
    assert ranks.run(3, compare, "nothing") == ["", "", ""]


def test_alone_everything_agrees() -> None:
    """Without a process group there is nothing to compare."""
    assert_synchronized(nn.BatchNorm1d(3))
