"""A running application without a cluster, its client, its store, and checkpoints on disk."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from service.app import create_app
from service.settings import Settings
from service.states import State
from service.store.store import Store
from tests.service.store.ranks import SPEC, manifest, said
from worker.contract import EventType, checkpoint_name, checkpoints_directory

with warnings.catch_warnings():
    # It would rather have httpx2, which nothing else here needs.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

BASE_URL = "http://127.0.0.1"
LAYERS = [
    {"name": "stem.norm", "kind": "SyncBatchNorm", "num_channels": 4, "eps": 1e-5, "momentum": 0.1},
    {"name": "head.norm", "kind": "SyncBatchNorm", "num_channels": 2, "eps": 1e-5, "momentum": None},
]


class World:
    """The application through its door, and what a rank would have done behind it."""

    def __init__(self, client: TestClient, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.store: Store = client.app.state.context.store

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function on the application's event loop."""
        return self.client.portal.call(lambda: function(*args, **kwargs))

    def submit(self, **changes: Any) -> dict[str, Any]:
        """Submit a job over HTTP."""
        answer = self.client.post("/v1/jobs", json=SPEC | changes)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def start(self, **changes: Any) -> str:
        """Submit a job and let it run, in attempt 1 with fence 1."""
        job_id = self.submit(**changes)["id"]
        self.call(self.store.attempts.begin, job_id, "first", 2)
        self.call(self.store.jobs.transition, job_id, State.RUNNING, from_={State.STARTING}, reason="training")
        return job_id

    def finish(self, job_id: str, state: State = State.SUCCEEDED) -> None:
        """Let a running job end."""
        assert self.call(self.store.jobs.transition, job_id, state, from_={State.RUNNING}, reason="done")

    def say(self, job_id: str, rank: int, *events: Any) -> None:
        """Let a rank report."""
        assert self.call(self.store.events.ingest, job_id, 1, rank, events, 1)

    def checkpoint(self, job_id: str, step: int, seq: int, **changes: Any) -> dict[str, Any]:
        """Write a checkpoint as a worker does, and announce it. Returns its manifest."""
        directory = self.directory(job_id, step)
        directory.mkdir(parents=True)
        files = {"model.safetensors": model(step), "training.safetensors": save({"x": np.zeros(3)}), "training.json": b"{}"}
        entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        data = manifest(job_id, step, **({"layers": LAYERS, "files": entries} | changes))
        for name, content in (files | {"manifest.json": json.dumps(data).encode()}).items():
            (directory / name).write_bytes(content)
        self.say(job_id, 0, said(seq, EventType.CHECKPOINT, **data))
        return data

    def directory(self, job_id: str, step: int) -> Path:
        """Return where a checkpoint lies."""
        return self.settings.storage_path / checkpoints_directory(job_id) / checkpoint_name(step)


def model(step: int) -> bytes:
    """Return a model file whose statistics tell the step."""
    return save(
        {
            "stem.conv.weight": np.ones((4, 3, 3, 3), np.float32),
            "stem.norm.running_mean": np.array([-1, 0, 1, step], np.float32),
            "stem.norm.running_var": np.array([1, 1, 1, 5], np.float64),
            "stem.norm.num_batches_tracked": np.array(step, np.int64),
            "head.norm.running_mean": np.array([0.5, -0.5], np.float16),
            "head.norm.running_var": np.array([2, 4], np.float32),
            "head.norm.num_batches_tracked": np.array(step, np.int64),
        }
    )


@contextmanager
def running(home: Path, **changes: Any) -> Iterator[World]:
    """Run an application on a home, with a client that has its token."""
    settings = Settings(home=home, **changes)
    with TestClient(create_app(settings), BASE_URL, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {settings.files.token.read_text().strip()}"
        yield World(client, settings)
