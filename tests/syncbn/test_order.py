"""The debug mode: what would hang, or mix layers up, is an error that names layer and rank."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncbn import OptionError, OrderError, SyncBatchNorm, order_checks
from syncbn.order import _Meeting
from tests.support.ranks import RankPool
from tests.syncbn.reductions import counted_reductions

TIMEOUT_S = 2.0  # where somebody does not come
PATIENCE_S = 15.0  # where everybody does: not to be waited for


def model(width: int = 3) -> nn.ModuleDict:
    """Two layers on a group of their own, so that what fails here is gone with it."""
    group = dist.new_group()
    return nn.ModuleDict({name: SyncBatchNorm(width, process_group=group) for name in ("a", "b")})


def outcome(net: nn.ModuleDict, order: str, x: Tensor, timeout_s: float = TIMEOUT_S) -> tuple[str, float]:
    """The error of running the layers in this order and then backward, and after how long."""
    start = time.monotonic()
    try:
        with order_checks(net, timeout_s=timeout_s):
            y = x.requires_grad_()
            for name in order:
                y = net[name](y)
            y.square().sum().backward()
    except OrderError as error:
        return str(error), time.monotonic() - start
    return "", time.monotonic() - start


def in_order(rank: int, world_size: int, orders: tuple[str, ...]) -> tuple[str, float]:
    """Each rank runs its own order of layers."""
    return outcome(model(), orders[rank], torch.randn(2 + rank, 3), PATIENCE_S)


@pytest.mark.ranks
def test_swapped_layers_are_named_at_once(ranks) -> None:
    """Both ranks raise, without waiting, and say who is where."""
    for message, seconds in ranks.run(2, in_order, ("ab", "ba")):
        assert message.startswith(
            "ranks are at different reductions: rank 0 at the forward of layer 'a' (call 1, 3 channels, float64); "
            "rank 1 at the forward of layer 'b' (call 1, 3 channels, float64): expected the same layers"
        )
        assert seconds < PATIENCE_S


@pytest.mark.ranks
def test_a_skipped_layer_is_named(ranks) -> None:
    """A rank that skips the first layer is at the second; one that skips the last is at its backward."""
    for message, _ in ranks.run(2, in_order, ("ab", "b")):
        assert "rank 0 at the forward of layer 'a'" in message
        assert "rank 1 at the forward of layer 'b'" in message
    for message, _ in ranks.run(3, in_order, ("ab", "a", "ab")):
        assert "rank 1 at the backward of layer 'a' (call 1, 3 channels" in message
        assert "at the forward of layer 'b'" in message


def absent(rank: int, world_size: int) -> tuple[str, float]:
    """Rank 1 runs the first layer and then nothing more, but stays."""
    net = model()
    if rank != 1:
        return outcome(net, "ab", torch.randn(2, 3))
    with order_checks(net, timeout_s=TIMEOUT_S):
        net["a"](torch.randn(2, 3))
    return "", 0.0


@pytest.mark.ranks
def test_a_rank_that_does_not_come_is_named_after_the_timeout(ranks) -> None:
    """With who waits, and where all were last."""
    first, second, third = ranks.run(3, absent)
    for message, seconds in (first, third):
        assert message.startswith(
            "rank 1 has not come to the forward of layer 'b' (call 1, 3 channels, float64) within 2.0 s, ranks 0, 2 wait there "
            "(last seen at the forward of layer 'a' (call 1, 3 channels, float64)): expected every rank"
        )
        assert TIMEOUT_S / 2 < seconds < TIMEOUT_S + 5
    assert second == ("", 0.0)


def late(rank: int, world_size: int) -> str:
    """Rank 1 comes when rank 0 has given up."""
    net = model()
    if rank == 1:
        dist.barrier()
    message, _ = outcome(net, "a", torch.randn(2, 3))
    if rank == 0:
        dist.barrier()
    return message


@pytest.mark.ranks
def test_who_comes_too_late_does_not_wait_for_those_who_gave_up(ranks) -> None:
    """It is told who gave up."""
    early, late_one = ranks.run(2, late)
    assert early.startswith("rank 1 has not come")
    assert late_one.startswith("all ranks have come to the forward of layer 'a' (call 1, 3 channels, float64), but rank 0 waited longer")


def other_channels(rank: int, world_size: int) -> str:
    """The layer has another width on rank 1."""
    return outcome(model(3 + rank), "a", torch.randn(2, 3 + rank), PATIENCE_S)[0]


@pytest.mark.ranks
def test_other_channels_are_named(ranks) -> None:
    """Vectors of different lengths would fail inside the backend, or not at all."""
    for message in ranks.run(2, other_channels):
        assert "rank 0 at the forward of layer 'a' (call 1, 3 channels, float64)" in message
        assert "rank 1 at the forward of layer 'a' (call 1, 4 channels, float64)" in message


def one_exits(rank: int, world_size: int) -> str:
    """Rank 1 leaves the group without a word."""
    net = model()
    if rank == 1:
        dist.destroy_process_group()
        return ""
    message, _ = outcome(net, "ab", torch.randn(2, 3))
    dist.destroy_process_group()
    return message


@pytest.mark.ranks
def test_a_rank_that_has_left_is_named() -> None:
    """The layer says who is missing."""
    with RankPool() as pool:
        message, _ = pool.run(2, one_exits)
    assert message.startswith("rank 1 has not come to the forward of layer 'a'")
    assert "nobody has reduced anything before" in message


class Unanswering:
    """A board whose store has gone."""

    ranks = (0, 1)

    def post(self, number: int, text: str) -> None:
        """As torch fails."""
        raise dist.DistNetworkError("Broken pipe")


def test_a_store_that_has_gone_is_said() -> None:
    """The error of torch becomes one that says what to look for."""
    with pytest.raises(OrderError, match=r"the store .* does not answer at the forward of layer 'a' \(call 1, 3\): Broken pipe: expected"):
        _Meeting(Unanswering(), 1.0).agree("a", "forward", "3")


def after_the_block(rank: int, world_size: int) -> int:
    """The backward of a block's forward runs within the next block."""
    layer = SyncBatchNorm(3, process_group=dist.new_group())
    with order_checks(layer, timeout_s=PATIENCE_S):
        first = layer(torch.randn(2, 3, requires_grad=True))
    with order_checks(layer, timeout_s=PATIENCE_S):
        second = layer(torch.randn(2, 3, requires_grad=True))
        first.sum().backward()
        second.sum().backward()
    return 1


@pytest.mark.ranks
def test_blocks_do_not_mix(ranks) -> None:
    """A backward is agreed upon in the block of its forward."""
    assert ranks.run(2, after_the_block) == [1, 1]


def agreeing(rank: int, world_size: int) -> tuple[bool, bool, int]:
    """Uneven ranks, one empty, that do the same: equal bits with and without, no reduction more, no key left; in two blocks."""
    results, counts = [], []
    group = dist.new_group()
    for checked in (False, True, True):
        layer = SyncBatchNorm(3, process_group=group)
        x = torch.randn(5 if rank else 0, 3, generator=torch.Generator().manual_seed(rank)).requires_grad_()
        with counted_reductions() as reductions:
            if checked:
                with order_checks(layer, timeout_s=PATIENCE_S):
                    y = layer(layer(x))
                    y.square().sum().backward()
            else:
                y = layer(layer(x))
                y.square().sum().backward()
        counts.append(list(reductions))
        results.append((y, x.grad, layer.running_var))
        assert layer.process_group is group
    same = all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    return same, counts[0] == counts[1] == counts[2], len(counts[0])


@pytest.mark.ranks
def test_ranks_that_agree_notice_nothing(ranks) -> None:
    """The same bits and the same reductions, one block after the other."""
    assert ranks.run(3, agreeing) == [(True, True, 4)] * 3


def test_alone_nothing_is_checked() -> None:
    """Without a process group the block does nothing, but refuses a timeout that is none."""
    layer = SyncBatchNorm(3)
    with order_checks(layer):
        assert layer.process_group is None
        layer(torch.randn(4, 3))
    with pytest.raises(OptionError, match="timeout_s 0 is not positive"), order_checks(layer, timeout_s=0):
        pass
