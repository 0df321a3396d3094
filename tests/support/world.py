"""A store, a cluster in memory and any number of controllers on them, for tests of what the controller does with jobs."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from service.policy import PolicyFile
from service.reconciler import Reconciler
from service.states import State
from service.store.records import Job
from service.store.store import Store
from tests.support.fake_cluster import FakeCluster, FakeGang
from worker.contract import EventType, checkpoint_name, checkpoints_directory, parse_spec
from worker.storage.local import LocalStorage

SPEC = {"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "resources": {"workers": 2}}
JOB_IDS = [f"job_{number:026d}" for number in range(10)]


class World:
    """A store and a cluster that outlive any number of controllers."""

    def __init__(self, store: Store, cluster: FakeCluster, storage: Path) -> None:
        self.store = store
        self.cluster = cluster
        self.storage = storage
        self.opened = LocalStorage(storage)
        self.policy = storage / "policy.toml"

    async def submit(self, number: int = 0, **change) -> str:
        """Store a queued job."""
        await self.store.jobs.create(JOB_IDS[number], parse_spec({**SPEC, **change}))
        return JOB_IDS[number]

    async def training(self, number: int = 0, **change) -> tuple[str, FakeGang]:
        """Submit a job and bring it as far as `running`; return it and its gang."""
        job_id = await self.submit(number, **change)
        return job_id, await self.train(job_id)

    async def train(self, job_id: str, attempt: int = 1) -> FakeGang:
        """Let the gang of an attempt say that it trains, and wait until the job runs; return the gang."""
        gang = await self.cluster.gang(job_id, attempt)
        gang.say(EventType.STATE, {"phase": "training"})
        await self.until(job_id, State.RUNNING)
        return gang

    def publish(self, job_id: str, step: int, accuracy: float) -> None:
        """Put a checkpoint into the storage, as a rank does that dies before it is heard."""
        directory = self.storage / checkpoints_directory(job_id) / checkpoint_name(step)
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text(json.dumps(manifest(job_id, step, accuracy)))

    @contextlib.asynccontextmanager
    async def controller(self) -> AsyncIterator[Reconciler]:
        """Run a controller inside the block; leaving it is like killing it, as far as jobs are concerned."""
        reconciler = Reconciler(self.cluster, self.opened, PolicyFile(self.policy))
        await reconciler.start(self.store)
        try:
            yield reconciler
        finally:
            await reconciler.stop()

    async def until(self, job_id: str, *states: State, timeout_s: float = 8.0) -> Job:
        """Wait until a job is in one of the states."""
        job = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while job is None or job.state not in states:
                    job = await self.store.jobs.get(job_id)
                    await asyncio.sleep(0.005)
        assert job is not None
        assert job.state in states, f"{job.state} {job.reason} {job.message}"
        return job


def run(tmp_path: Path, scenario) -> None:
    """Run a scenario with a fresh world."""

    async def main() -> None:
        async with await Store.open(f"sqlite:///{tmp_path / 'test.db'}") as store:
            await scenario(World(store, FakeCluster(), tmp_path))

    asyncio.run(main())


def manifest(job_id: str, step: int, accuracy: float) -> dict[str, Any]:
    """Return the data of a checkpoint event."""
    return {
        "job_id": job_id, "attempt": 1, "fence": 1, "step": step, "epoch": 1.0, "samples": 1, "world_size": 2,
        "created_at": "2026-01-01T00:00:00Z", "metrics": {"val/accuracy": accuracy}, "spec": {}, "spec_sha256": "0" * 64, "versions": {},
        "health": {"status": "healthy"}, "layers": [], "files": {},
    }  # fmt: skip
