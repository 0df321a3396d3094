"""The real application on a real port, over a cluster in memory whose gangs play a short script: for tests of clients.

name of the job     what its gang does
fails               a task error after one step
forever             one step, then nothing until it is cancelled
anything else       three steps, log lines, a checkpoint with two files, success
"""

import asyncio
import hashlib
import json
import struct
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog
import uvicorn

from service.app import create_app
from service.policy import PolicyFile
from service.reconciler import Reconciler
from service.settings import Settings
from tests.support.fake_cluster import FakeCluster
from worker.contract import EventType, FileEntry, Health, LayerEntry, Manifest, checkpoint_name, checkpoints_directory
from worker.storage.local import LocalStorage

SPEC = {"name": "good", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "steps": 3}
NASTY = "\x1b[31mred\u2028<script>alert(1)</script>"


class LiveService:
    """What a test knows of the running service."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url
        self.token = (home / "token").read_text().strip()


@contextmanager
def live_service(home: Path):
    """Run the service in a thread; announced in its home as `syncbn serve` does it."""
    # The service's log would come into the stdout that a test looks at: both are in one process here.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    settings = Settings(home=home, port=0, heartbeat_s=0.2)
    cluster = FakeCluster(cpus=1000)
    app = create_app(settings, controller=Reconciler(cluster, LocalStorage(settings.storage_path), PolicyFile(settings.policy_path)))
    players = _while_it_runs(app, lambda: _play_all(cluster, settings.storage_path))
    server = uvicorn.Server(uvicorn.Config(players, port=0, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    (home / "controller.json").write_text(json.dumps({"url": url, "pid": 0}))
    try:
        yield LiveService(home, url)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        structlog.reset_defaults()


def _while_it_runs(app, play):
    """Have a coroutine run beside the application, in its loop."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(scope):
        async with inner(scope):
            task = asyncio.create_task(play())
            try:
                yield
            finally:
                task.cancel()

    app.router.lifespan_context = lifespan
    return app


async def _play_all(cluster, storage):
    played = set()
    while True:
        for key, gang in list(cluster.gangs.items()):
            if gang.assignments and key not in played:
                played.add(key)
                _play(gang, storage)
            if gang.is_asked_to_pause and key in played and (*key, "paused") not in played:
                played.add((*key, "paused"))
                gang.end("paused")
            if gang.is_asked_to_stop and key in played:
                played.add((*key, "stopped"))
                gang.end("stopped")
        await asyncio.sleep(0.01)


def _play(gang, storage):
    name = gang.assignments[0].spec.name
    gang.say(EventType.STATE, {"phase": "training"})
    for step in range(1, 2 if name in {"fails", "forever"} else 4):
        values = {"train/loss": 1 / step, "val/accuracy": 0.9 + step / 100, "throughput/samples_per_s": 100.0}
        gang.say(EventType.METRICS, {"step": step, "total_steps": 3, "epoch": step / 3, "samples": step, "values": values}, [0])
    gang.say(EventType.LOG, {"stream": "stdout", "level": "info", "message": NASTY}, [0])
    if name == "fails":
        failure = {"code": "task_error", "message": "the model raised ValueError: no", "rank": 0, "retryable": False}
        gang.end("failed", failure)
    elif name != "forever":
        gang.say(EventType.CHECKPOINT, json.loads(_write_checkpoint(gang.assignments[0], storage).model_dump_json()), [0])
        gang.end()


def _write_checkpoint(assignment, storage):
    directory = storage / checkpoints_directory(assignment.job_id) / checkpoint_name(3)
    directory.mkdir(parents=True)
    contents = {"model.safetensors": _model(), "training.json": b"{}" * 1000}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    manifest = Manifest(
        job_id=assignment.job_id,
        attempt=assignment.attempt,
        fence=assignment.fence,
        step=3,
        epoch=1.0,
        samples=3,
        world_size=assignment.world_size,
        created_at=datetime.now(UTC),
        metrics={"val/accuracy": 0.93, "val/loss": 0.2},
        spec=assignment.spec.model_dump(mode="json"),
        spec_sha256="0" * 64,
        versions={"torch": "0"},
        health=Health(status="healthy"),
        layers=(LayerEntry(name="bn1", kind="SyncBatchNorm", num_channels=2, eps=1e-5, momentum=0.1),),
        files={name: FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest()) for name, content in contents.items()},
    )
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


def _model() -> bytes:
    """Return a safetensors file with the running statistics of one layer of two channels."""
    tensors = {
        "bn1.running_mean": ("F32", [2], struct.pack("<2f", -1.0, 3.0)),
        "bn1.running_var": ("F32", [2], struct.pack("<2f", 0.5, 2.5)),
        "bn1.num_batches_tracked": ("I64", [], struct.pack("<q", 3)),
    }
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data
