"""The pool of ranks says who failed, died or hung, and goes on."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import RankError, RankPool


def add(rank: int, world_size: int, offset: int) -> int:
    """The sum of all ranks' numbers."""
    total = torch.tensor(rank + offset)
    dist.all_reduce(total)
    return int(total)


def misbehave(rank: int, world_size: int, how: str) -> None:
    """Rank 1 raises, dies or hangs; rank 0 waits for it, or not."""
    if rank == 1 and how == "raises":
        raise ValueError("on purpose")
    if rank == 1 and how == "dies":
        os._exit(7)
    if rank == 1:
        time.sleep(30)
    if how == "dies":
        dist.barrier()


@pytest.mark.ranks
def test_failures_are_named_and_survived() -> None:
    """Each failure names its rank and what it did; the next call works; no process is left at the end."""
    with RankPool(answer_timeout_s=2.0) as pool:
        assert pool.run(2, add, 10) == [21, 21]
        for how, text in (
            ("raises", "ValueError: on purpose"),
            ("dies", "rank 1 died with exit code 7"),
            ("hangs", "rank 1 has not answered"),
        ):
            with pytest.raises(RankError, match=text):
                pool.run(2, misbehave, how)
            assert pool.run(2, add, 0) == [1, 1]
        processes = [worker.process.pid for worker in pool._workers]
        assert len(processes) == 2
    for pid in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
