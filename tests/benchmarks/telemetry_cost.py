"""What it costs to watch the normalization layers: every other step of a job is watched. Two ranks, no Ray."""

from __future__ import annotations

import asyncio
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from service.states import State
from service.store.store import Store
from tests.benchmarks.stock_training import SPEC
from tests.support.process_cluster import ProcessCluster
from tests.support.world import World
from worker.telemetry import INTERVAL_STEPS

PATIENCE_S = 1800.0


def watch_every_other(rank: int, made_for: int, argument: None) -> None:
    """Have this process watch the steps with an odd number. Planted into every rank."""
    del rank, made_for, argument
    import worker.training

    worker.training.is_watched = lambda step, total_steps: step % 2 == 1


def measure(home: Path, pairs: int) -> tuple[float, float, float]:
    """Return the median seconds of a watched step, of another, and the share of steps that are watched otherwise."""
    home.mkdir()
    cluster = ProcessCluster((__file__, "watch_every_other", None))
    try:
        times = asyncio.run(_train(home, cluster, {**SPEC, "steps": 2 * pairs + 2}))
    finally:
        cluster.close()
    # Steps are numbered from 1 in events: an even number was watched.
    took = [(step, at - before) for (_, before), (step, at) in pairwise(times[1:])]
    watched, plain = ([seconds for step, seconds in took if step % 2 == odd] for odd in (0, 1))
    return statistics.median(watched), statistics.median(plain), 1 / INTERVAL_STEPS


async def _train(home: Path, cluster: ProcessCluster, spec: dict[str, Any]) -> list[tuple[int, float]]:
    async with await Store.open(f"sqlite:///{home / 'test.db'}") as store:
        world = World(store, cluster, home)
        job_id = await world.submit(0, **spec)
        async with world.controller():
            await world.until(job_id, State.SUCCEEDED, timeout_s=PATIENCE_S)
        events = await store.events.page(job_id, 0, 100_000)
    reports = [event for event in events if event.type == "metrics" and "train/loss" in event.data["values"]]
    return [(event.data["step"], event.at.timestamp()) for event in reports]
