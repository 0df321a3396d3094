"""Groups: who is resolved to whom, and how ranks are cut into groups."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from syncbn import OptionError, SyncBatchNorm, collectives, norm_groups
from tests.support.ranks import RankPool


def groups(rank: int, world_size: int, size: int, *, local: bool) -> list[int]:
    """The ranks of this rank's group, after a reduction in it."""
    group = norm_groups(size, prefer_node_local=local)
    members = dist.get_process_group_ranks(group)
    layer = SyncBatchNorm(1, momentum=1.0, process_group=group, dtype=torch.float64)
    layer(torch.tensor([[float(rank)], [float(rank)]]).double())
    assert layer.running_mean.item() == pytest.approx(sum(members) / len(members))
    return members


@pytest.mark.ranks
def test_groups_are_cut_evenly(ranks) -> None:
    """Four ranks in twos: neighbours together, each in the group it was given."""
    for local in (True, False):
        assert ranks.run(4, groups_of_two, local) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def groups_of_two(rank: int, world_size: int, local: bool) -> list[int]:
    """Twos."""
    return groups(rank, world_size, 2, local=local)


def test_ranks_of_one_host_are_neighbours(monkeypatch) -> None:
    """Interleaved hosts are sorted apart before the cut."""

    def gather(hosts: list, _: str) -> None:
        hosts[:] = ["b", "a", "b", "a"]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    assert collectives._ranks_by_host(4) == [0, 2, 1, 3]


def refused(rank: int, world_size: int) -> str:
    """Five ranks do not go into twos."""
    try:
        norm_groups(2)
    except OptionError as error:
        return str(error)
    return ""


@pytest.mark.ranks
def test_a_size_that_does_not_divide_is_refused(ranks) -> None:
    """The error lists the sizes that do."""
    assert set(ranks.run(3, refused)) == {"size 2 does not divide the 3 ranks: expected one of [1, 3]; choose one of these"}


def test_alone_there_is_no_group() -> None:
    """Without a process group everything is local."""
    assert norm_groups(1) is None
    assert collectives.resolve(None) is None
    assert (collectives.group_size(None), collectives.rank_in(None)) == (1, 0)
    vector = torch.ones(3)
    assert collectives.sum_over_ranks(vector, None) is vector
    assert collectives.differentiable_sum_over_ranks(vector, None) is vector
    assert collectives.gather_over_ranks(vector, None).shape == (1, 3)
    with pytest.raises(OptionError, match="size 2 does not divide the 1 ranks"):
        norm_groups(2)


def abandoned(rank: int, world_size: int) -> tuple[str, float]:
    """Rank 1 leaves the group; what rank 0's layer says, and after how many seconds."""
    layer, x = SyncBatchNorm(3), torch.randn(4, 3)
    layer(x)
    if rank == 1:
        dist.destroy_process_group()
        return "left", 0.0
    start = time.monotonic()
    try:
        layer(x)
    except RuntimeError as failure:
        return str(failure), time.monotonic() - start
    finally:
        dist.destroy_process_group()
    return "nothing", 0.0


@pytest.mark.ranks
def test_a_neighbour_that_leaves_is_an_error_and_no_hang() -> None:
    """A surviving rank's layer raises at once when a neighbour's connection closes."""
    with RankPool() as pool:
        (message, seconds), _ = pool.run(2, abandoned)
    assert "nothing" not in message
    assert seconds < 5
