"""`syncbn serve` over a cluster in memory whose ranks talk: `python -m tests.benchmarks.talking serve --home HOME ...`.

A job named `talk-NUM-RATE` has rank 0 say NUM times a step's metrics and a line of log, RATE times a second, all at once where RATE is 0,
as soon as there is a file named after the job in the home; then it succeeds. Everything but the processes of the ranks is real.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import service.controller
from service.cli.main import main
from service.policy import PolicyFile
from service.reconciler import Reconciler
from service.settings import Settings
from tests.support.fake_cluster import FakeCluster, FakeGang
from worker.contract import EventType
from worker.storage.opening import open_storage


class Talking(Reconciler):
    """A reconciler, and the voices of its ranks."""

    def __init__(self, settings: Settings) -> None:
        self._ranks = FakeCluster(cpus=1000)
        self._home = settings.home
        super().__init__(self._ranks, open_storage(settings.storage_url), PolicyFile(settings.policy_path))

    async def start(self, store) -> None:
        """Begin, and let the ranks speak."""
        await super().start(store)
        self._voices = asyncio.create_task(_play_all(self._ranks, self._home))


async def _play_all(cluster: FakeCluster, home: Path) -> None:
    playing = {}
    while True:
        for key, gang in list(cluster.gangs.items()):
            if gang.assignments and key not in playing:
                playing[key] = asyncio.create_task(_play(gang, home))
        await asyncio.sleep(0.02)


async def _play(gang: FakeGang, home: Path) -> None:
    name = gang.assignments[0].spec.name
    _, num, per_s = name.split("-")
    gang.say(EventType.STATE, {"phase": "training"})
    while not (home / name).exists():
        await asyncio.sleep(0.02)
    for step in range(1, int(num) + 1):
        values = {"train/loss": 1 / step, "lr": 0.1, "throughput/samples_per_s": 100.0}
        progress = {"step": step, "total_steps": int(num), "epoch": step / int(num), "samples": step}
        gang.say(EventType.METRICS, {**progress, "values": values}, [0])
        gang.say(EventType.LOG, {"stream": "stdout", "level": "info", "message": f"step {step}: loss {1 / step:.4f}"}, [0])
        if int(per_s):
            await asyncio.sleep(1 / int(per_s))
    gang.end()


if __name__ == "__main__":
    service.controller.build_controller = Talking
    main()
