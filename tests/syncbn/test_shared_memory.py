"""Sums through shared memory: the same numbers as over the network, whoever is late, missing, dead, or has no memory to share."""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from syncbn import OrderError, SyncBatchNorm, collectives, native
from syncbn.shared_memory import rooms
from tests.support.ranks import RankError, RankPool

LATE_S = 4 * rooms.PATIENCE_S


def vectors(rank: int, count: int = 5) -> list[Tensor]:
    """Numbers of very different sizes, whose sum depends on the order in which they are added."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(2 * i + 3, generator=generator, dtype=torch.float64) * 10.0 ** (7 * rank) for i in range(count)]


def in_order(world_size: int) -> list[Tensor]:
    """What every rank must find, in every bit."""
    sums = vectors(0)
    for rank in range(1, world_size):
        sums = [total + own for total, own in zip(sums, vectors(rank), strict=True)]
    return sums


def summed(rank: int, world_size: int, late: dict[int, int], is_in_memory: bool) -> tuple[bool, bool, int]:
    """Sums one by one and all under way at once; whether they are right, whether memory is shared, and how many went over the network.

    Args:
        late: rank to number of the sum that it comes late to.
        is_in_memory: whether this is to be shared; else every rank behaves as if it had no compiler.
    """
    gathered = 0

    def counting(vector: Tensor, group: collectives.ProcessGroup) -> Tensor:
        nonlocal gathered
        gathered += 1
        return original(vector, group)

    group = dist.new_group(list(range(world_size)))
    original, enter = collectives._sum_in_order, rooms._functions
    collectives._sum_in_order = counting
    if not is_in_memory and rank == world_size - 1:
        rooms._functions = _without_a_compiler
    try:
        found = []
        for number, vector in enumerate(vectors(rank)):
            if late.get(rank) == number:
                time.sleep(LATE_S)
            found.append(collectives.sum_over_ranks(vector, group))
        under_way = [collectives.start_sum_over_ranks(vector, group) for vector in vectors(rank)]
        found += [wait() for wait in under_way]
    finally:
        collectives._sum_in_order, rooms._functions = original, enter
    wanted = in_order(world_size)
    is_right = all(
        torch.equal(a, b) if is_in_memory else torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, wanted + wanted, strict=True)
    )
    return is_right, collectives._ROOMS[group] is not None, gathered


def _without_a_compiler() -> None:
    raise native.BuildError("no compiler")


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 3])
def test_sums_in_the_order_of_ranks(ranks, world_size) -> None:
    """One by one and several under way, and nothing crosses the network."""
    found = ranks.run(world_size, summed, {}, True)
    assert [(is_right, is_shared) for is_right, is_shared, _ in found] == [(True, True)] * world_size
    # An oversubscribed machine may keep a rank away for longer than the others are patient; then all of them went over the network.
    assert len({gathered for *_, gathered in found}) == 1


@pytest.mark.ranks
def test_a_late_rank_is_met_on_the_network_with_the_same_sum(ranks) -> None:
    """Two rounds are given up, by everybody, and the sums are equal in every bit; later rounds are whole again."""
    found = ranks.run(3, summed, {1: 1, 2: 3}, True)
    assert [(is_right, is_shared) for is_right, is_shared, _ in found] == [(True, True)] * 3
    (gathered,) = {gathered for *_, gathered in found}
    assert gathered >= 2


@pytest.mark.ranks
def test_if_one_rank_cannot_nobody_does(ranks) -> None:
    """A rank without a compiler: all add up over the network."""
    assert ranks.run(3, summed, {}, False) == [(True, False, 0)] * 3


def far_apart(rank: int, world_size: int) -> tuple[bool, int]:
    """More sums under way than there are rounds, while the last rank has not come to the first; whether they are right, and patience."""
    calls = 0

    def counting(vector: Tensor, group: collectives.ProcessGroup) -> Tensor:
        nonlocal calls
        calls += 1
        return original(vector, group)

    collectives.sum_over_ranks(torch.zeros(1).double(), dist.group.WORLD)  # has all come to the memory
    original = collectives._sum_in_order
    collectives._sum_in_order = counting
    try:
        if rank == world_size - 1:
            time.sleep(LATE_S)
        waits = [
            collectives.start_sum_over_ranks(torch.full((3,), float(n)).double(), dist.group.WORLD) for n in range(rooms.NUM_ROUNDS + 4)
        ]
        return all(wait().tolist() == [world_size * n] * 3 for n, wait in enumerate(waits)), calls
    finally:
        collectives._sum_in_order = original


@pytest.mark.ranks
def test_nobody_runs_ahead_by_more_rounds_than_there_are(ranks) -> None:
    """Who would enter a ninth round waits for the first, over the network if need be: its memory may be in use by a rank that is behind."""
    found = ranks.run(3, far_apart)
    assert [is_right for is_right, _ in found] == [True] * 3
    assert len({calls for _, calls in found}) == 1
    assert found[0][1] >= 1


def many(rank: int, world_size: int) -> bool:
    """Hundreds of rounds, up to all that may be under way at once, waited for in another order than begun."""
    totals = []
    for number in range(300):
        vector = torch.tensor([float(rank), float(number)], dtype=torch.float64)
        totals.append((number, collectives.start_sum_over_ranks(vector, dist.group.WORLD)))
        if len(totals) > number % 12:
            for n, wait in reversed(totals):
                assert wait().tolist() == [sum(range(world_size)), world_size * n]
            totals.clear()
    return collectives._ROOMS[dist.group.WORLD] is not None


@pytest.mark.ranks
def test_rounds_are_used_again(ranks) -> None:
    """No round takes over the memory of one that somebody still reads."""
    assert ranks.run(3, many) == [True] * 3


def too_long(rank: int, world_size: int) -> tuple[bool, float]:
    """A vector for which there is no room."""
    vector = torch.full((rooms.CAPACITY + 1,), float(rank + 1), dtype=torch.float64)
    total = collectives.sum_over_ranks(vector, dist.group.WORLD)
    return collectives._ROOMS[dist.group.WORLD] is not None, float(total.sum()) / len(vector)


@pytest.mark.ranks
def test_what_is_too_long_goes_over_the_network(ranks) -> None:
    """The sum is right."""
    assert ranks.run(2, too_long) == [(True, 3.0)] * 2


def unequal(rank: int, world_size: int) -> str:
    """Ranks in different layers, and then, for as long as any of it is remembered, in the same."""
    said = "nothing"
    try:
        SyncBatchNorm(3 + rank)(torch.randn(4, 3 + rank))
    except OrderError as error:
        said = str(error)
    for _ in range(rooms.NUM_ROUNDS):
        SyncBatchNorm(3)(torch.randn(4, 3))
    return said


@pytest.mark.ranks
def test_ranks_in_different_layers_are_told_so(ranks) -> None:
    """An error on every rank, once, instead of a sum of different things."""
    for rank, said in enumerate(ranks.run(2, unequal)):
        assert f"this one's vector has {2 * (3 + rank) + 1} numbers" in said


def dies(rank: int, world_size: int) -> None:
    """Rank 1 is killed where the others wait for it."""
    vector = torch.ones(3, dtype=torch.float64)
    collectives.sum_over_ranks(vector, dist.group.WORLD)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begun = time.monotonic()
    try:
        collectives.sum_over_ranks(vector, dist.group.WORLD)
    except RuntimeError as error:
        raise RuntimeError(f"lost after {time.monotonic() - begun:.0f} s") from error


@pytest.mark.ranks
def test_a_rank_that_is_killed_is_noticed_on_the_network() -> None:
    """At once, by the connection, and not by a timeout."""
    with RankPool() as pool, pytest.raises(RankError, match=r"rank 1 died(.|\n)*lost after [0-4] s|lost after [0-4] s(.|\n)*rank 1 died"):
        pool.run(2, dies)


def freed(rank: int, world_size: int) -> tuple[bool, bool]:
    """Whether there is no room any more after its group, and whether less of such memory is mapped."""
    group = dist.new_group(list(range(world_size)))
    collectives.sum_over_ranks(torch.ones(3, dtype=torch.float64), group)
    room, with_group = weakref.ref(collectives._ROOMS[group]), _mapped()
    dist.destroy_process_group(group)
    del group
    gc.collect()
    return room() is None, _mapped() < with_group


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:syncbn")


@pytest.mark.ranks
def test_the_memory_goes_with_the_group(ranks) -> None:
    """Groups come and go as ranks are replaced."""
    assert ranks.run(2, freed) == [(True, True)] * 2


def test_memory_of_a_stranger_is_not_entered() -> None:
    """What lies under the process and descriptor of an offer, but has another nonce, is another process's in another namespace."""
    descriptor = os.memfd_create("stranger")
    try:
        rooms.Room(descriptor, 0, 2).nonce = b"another"
        offer = rooms._Offer(1, 0, os.getpid(), descriptor, int.from_bytes(b"another", "big"))
        assert rooms._opened(offer, 1, 2) is not None
        assert rooms._opened(offer._replace(nonce=1), 1, 2) is None
        assert rooms._opened(offer._replace(descriptor=10**6), 1, 2) is None
        assert rooms._opened(offer, 1, 3) is None, "a memory of another size"
    finally:
        os.close(descriptor)


def test_hosts_are_told_apart_by_their_network(monkeypatch) -> None:
    """Ranks in two network namespaces do not share memory, though the machine is one."""
    offers = torch.tensor([rooms._Offer(1, rooms._host(), 1, 1, 1), rooms._Offer(1, 42, 0, 0, 0)])
    asked = []

    def gather(row: Tensor) -> Tensor:
        asked.append(row)
        return offers

    assert rooms.enter_room(0, 2, gather) is None
    assert len(asked) == 1
