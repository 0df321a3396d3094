"""Tests of worker/ranks.py."""

import multiprocessing
import os
import threading
import time
from datetime import timedelta

import psutil
import pytest
import torch
import torch.distributed as dist

from worker.errors import GangStartError, PeerLostError
from worker.meeting import connect_store, host_store
from worker.ranks import device_for, join, leave
from worker.settings import WorkerSettings


def test_a_rank_that_is_told_to_meet_elsewhere_waits_no_longer():
    """A peer that died before it came costs no more than the new assignment."""
    store, started = host_store("127.0.0.1"), time.monotonic()

    with pytest.raises(PeerLostError, match="rank 0 of 2 waits no longer for the others"):
        join(store, 0, 2, torch.device("cpu"), is_superseded=lambda: time.monotonic() > started + 0.05)
    assert time.monotonic() - started < 5


def _come_and_die(port: int) -> None:
    """Be there, and be gone before the connections are made."""
    connect_store("127.0.0.1", port).set("here/1", "")
    os._exit(0)


def _come(port: int) -> None:
    ranks = join(connect_store("127.0.0.1", port), 1, 2, torch.device("cpu"))
    ranks.sum(torch.ones(1))


def test_a_rank_that_dies_while_the_group_is_made_costs_one_meeting():
    """The survivor leaves as soon as it is told to meet anew, and the next group, with a new process in it, forms."""
    processes = multiprocessing.get_context("spawn")
    store = host_store("127.0.0.1")
    dead = processes.Process(target=_come_and_die, args=(store.port,))
    dead.start()
    dead.join()
    started = time.monotonic()
    with pytest.raises(PeerLostError, match="rank 0 of 2 lost the others when all were there"):
        join(store, 0, 2, torch.device("cpu"), is_superseded=lambda: time.monotonic() > started + 0.2)
    assert time.monotonic() - started < 5

    store = host_store("127.0.0.1")
    new = processes.Process(target=_come, args=(store.port,))
    new.start()
    settings = WorkerSettings(collective_timeout_s=30)
    assert join(store, 0, 2, torch.device("cpu"), settings=settings).sum(torch.ones(1)).item() == 2
    assert dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=30)
    new.join(10)
    assert new.exitcode == 0
    leave()


def test_a_rank_that_nobody_joins_gives_up_in_time():
    """One of two ranks comes: it says that they did not meet."""
    store = host_store("127.0.0.1")
    settings = WorkerSettings(meet_timeout_s=1, collective_timeout_s=1)

    with pytest.raises(GangStartError, match="rank 0 of 2 did not meet the others"):
        join(store, 0, 2, torch.device("cpu"), settings=settings)


def test_leaving_closes_every_thread_and_socket():
    """After a model was trained in it, a group that was left keeps no connection open, by which alone the peers see it."""
    before = threading.active_count(), psutil.Process().num_threads()
    store = host_store("127.0.0.1")
    with_store = psutil.Process().num_threads()
    ranks = join(store, 0, 1, torch.device("cpu"))
    replica = ranks.replicate(torch.nn.Linear(2, 2))
    torch.autograd.backward(replica(torch.ones(3, 2)).sum())
    assert psutil.Process().num_threads() > with_store

    del replica, ranks
    leave()

    assert psutil.Process().num_threads() <= with_store
    assert threading.active_count() == before[0]
    leave()  # a second time does nothing


def test_no_gpu_where_one_was_promised_is_said_so(monkeypatch):
    """A rank never falls back to the CPU in silence."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert device_for(0) == torch.device("cpu")
    with pytest.raises(GangStartError, match="gpus_per_worker is 1 and this process sees no CUDA device"):
        device_for(1)
