"""What a round of the scheduler costs with many jobs on the books: `python -m tests.benchmarks.queue [JOBS]`.

Rows are written straight into the tables. Every figure is the median of three; those in one table are of one run.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service import planner as planning
from service.planner import Planner
from service.policy import PolicyFile
from service.room import Room
from service.states import State
from service.store.records import Progress
from service.store.store import Store
from service.store.tables import jobs, needs
from tests.support.fake_cluster import FakeCluster
from tests.support.simulation import nodes
from worker.contract import parse_spec

SPEC = parse_spec(
    {"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "resources": {"workers": 8, "gpus_per_worker": 1}}
)
NUM_HELD = 120


class Full(FakeCluster):
    """125 nodes of 8 GPUs, all of whose GPUs but five are in use: nobody in the queue fits, and the whole of it is looked at."""

    async def room(self) -> Room:
        """Return it."""
        ledger = {node.id: 8 - (5 if node.id == "node000" else 0) for node in nodes(125)}
        seen = tuple(type(node)(node.id, 64, 8, 64 - ledger[node.id], 8 - ledger[node.id]) for node in nodes(125))
        return Room(seen, {_id(number): {f"node{number % 125:03d}": 8} for number in range(NUM_HELD)})


async def fill(store: Store, count: int) -> None:
    """Store NUM_HELD running jobs and `count` queued ones."""
    row = {"name": "t", "message": "", "labels": {"team": "a"}, "progress": asdict(Progress()), "metrics": {}, "world_size": 8, "fence": 0}
    row |= {"attempt": 0, "spec": SPEC.model_dump(mode="json"), "last_seq": 0, "edition": 1, "reason": "submitted"}
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    need = {"min_workers": 8, "max_workers": 8, "cpus_per_worker": 1.0, "gpus_per_worker": 1, "timeout_s": 86_400.0}
    async with store._database.write("benchmark") as write:
        for first in range(0, count + NUM_HELD, 5_000):
            numbers = range(first, min(first + 5_000, count + NUM_HELD))
            rows = [
                {"id": _id(number), "created_at": begin + timedelta(seconds=number), "priority": number % 3}
                | {"state": State.RUNNING if number < NUM_HELD else State.QUEUED, "started_at": begin if number < NUM_HELD else None}
                for number in numbers
            ]
            await write.connection.execute(jobs.insert(), [row | one for one in rows])
            await write.connection.execute(needs.insert(), [need | {"job_id": _id(number)} for number in numbers])


async def figures(store: Store, home: Path) -> dict[str, float]:
    """Return milliseconds by what was measured."""

    async def whole_rows() -> None:
        await store.jobs.in_states({State.QUEUED})

    async def deep() -> None:
        await _planner(home, is_deep=True).plan(store, set())

    async def near() -> None:
        await _planner(home, is_deep=False).plan(store, set())

    async def first_page() -> None:
        await store.jobs.queue(0, 100)

    async def last_page() -> None:
        await store.jobs.queue(1_000_000, 100)

    await deep()
    cases = {
        "every row of the queue with its spec (as rounds were before)": whole_rows,
        "a round that looks at the whole queue (every 30 s)": deep,
        "a round": near,
        "GET /v1/queue, the first 100 (store only)": first_page,
        "GET /v1/queue, behind the last (store only)": last_page,
    }
    return {name: await _median_ms(case) for name, case in cases.items()}


def _planner(home: Path, *, is_deep: bool) -> Planner:
    planner = Planner(Full(), PolicyFile(home / "policy.toml"))
    planner._next_deep = 0.0 if is_deep else time.monotonic() + 3600
    return planner


async def _median_ms(case) -> float:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        await case()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def _id(number: int) -> str:
    return f"job_{number:026d}"


async def measure(count: int) -> dict[str, float]:
    """Fill a new store and measure it."""
    with tempfile.TemporaryDirectory() as home:
        async with await Store.open(f"sqlite:///{home}/queue.db") as store:
            await fill(store, count)
            return await figures(store, Path(home))


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"{count} queued jobs, {NUM_HELD} running, pages of {planning.PAGE}\n\n| what | ms |\n|---|---|")
    for name, milliseconds in asyncio.run(measure(count)).items():
        print(f"| {name} | {milliseconds:.1f} |")


if __name__ == "__main__":
    main()
