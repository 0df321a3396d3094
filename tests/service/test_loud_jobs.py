"""A job that prints more than a gigabyte a minute, through the real capture, mailbox and controller, each in a process of its own."""

import time

import psutil
import pytest

from tests.support.actor_host import ActorHost
from tests.support.killing import home_of, spec, until
from tests.support.scripted_rank import LOUD_CHARS, LOUD_LINES
from worker.output import LINE_BYTES

STEPS = 60
LONGEST_S = 120.0
QUOTA = 2 * 2**20
MOST_GROWN_BYTES = 250 * 2**20
"""Of a rank or the controller. Unbounded, a rank would keep 240 MB of text, which take more than a gigabyte as events."""


@pytest.fixture(name="world")
def _world(tmp_path):
    """A home whose jobs may log two megabytes."""
    with ActorHost(tmp_path) as host, home_of(tmp_path / "home", host, {"SYNCBN_MAX_LOG_BYTES": str(QUOTA)}) as world:
        world.start()
        yield world


class _Memory:
    """How much memory processes had when they were looked at first, and at most since."""

    def __init__(self):
        self._first, self._most = {}, {}

    def look(self, pids):
        """Look at processes, if they live."""
        for pid in pids:
            try:
                rss = psutil.Process(pid).memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self._first.setdefault(pid, rss)
            self._most[pid] = max(rss, self._most.get(pid, 0))

    def grown(self):
        """Return by how much each has grown."""
        return {pid: self._most[pid] - first for pid, first in self._first.items()}


def test_a_job_that_prints_without_end_harms_nobody(world):
    """Every step is on record, of another job too; memory and log are bounded; what is missing is counted; the last words are there."""
    began, memory = time.monotonic(), _Memory()
    job_id = world.client.submit(spec("loud", steps=STEPS))["id"]
    other_id = world.client.submit(spec("whole", steps=4 * STEPS))["id"]

    def is_over():
        pids = [world.host.pid(name) for name in world.host.named() if name.startswith(job_id)]
        memory.look([world.pid, *(pid for pid in pids if pid is not None)])
        return world.client.job(job_id)["state"] == "succeeded"

    until(is_over, LONGEST_S, "the end of the loud job", world.home)
    took_s = time.monotonic() - began
    world.ended(other_id, "succeeded")
    grown = memory.grown()
    assert len(grown) == 3
    assert max(grown.values()) < MOST_GROWN_BYTES, grown

    events = list(world.client.events(job_id))
    assert [event["data"]["step"] for event in events if event["type"] == "metrics"] == list(range(1, STEPS + 1))
    assert events[-1]["type"] == "end"
    logs = [event["data"] for event in events if event["type"] == "log"]
    assert sum(len(line["message"]) + LINE_BYTES for line in logs) <= QUOTA
    dropped = [line for line in logs if "num_dropped" in line]
    assert dropped
    assert all("were dropped here" in line["message"] for line in dropped)
    printed = 2 * (STEPS * LOUD_LINES + 1)
    assert sum(line.get("num_dropped", 1) for line in logs) == printed
    for rank in range(2):
        mine = [line["message"] for line in world.client.logs(job_id) if line["rank"] == rank]
        assert mine[-1] == f"the last word of rank {rank}"
    print(f"{printed * LOUD_CHARS / 1e6 / took_s:.0f} MB/s for {took_s:.1f} s; grown by {grown}")
