"""A service with something of everything to see: jobs in all states, ten thousand of them, a million points, checkpoints, hostile words."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from safetensors.numpy import save
from sqlalchemy import text

from service.states import State
from service.store.rolls import roll
from service.store.tables import jobs
from tests.service.api import world as api_world
from tests.service.api.world import World
from tests.service.store.ranks import SPEC, said
from worker.contract import EventType

NUM_JOBS = 10_000
NUM_POINTS = 1_000_000
PEAK = 567_890
HOSTILE = "<script>window.injected = 1</script><img src=x onerror='window.injected = 2'>"
LAYERS = [
    {"name": f"layer{block}.{unit}.bn{norm}", "kind": "SyncBatchNorm", "num_channels": 64 * block, "eps": 1e-5, "momentum": 0.1}
    for block in (1, 2, 3)
    for unit in (0, 1)
    for norm in (1, 2)
]
_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
# How a job comes to each state from `running`.
PATHS = {
    State.RECOVERING: [State.RECOVERING],
    State.PAUSING: [State.PAUSING],
    State.PAUSED: [State.PAUSING, State.PAUSED],
    State.SUCCEEDED: [State.SUCCEEDED],
    State.FAILED: [State.FAILED],
    State.CANCELLING: [State.CANCELLING],
    State.CANCELLED: [State.CANCELLING, State.CANCELLED],
}


class Filled:
    """The world, and the ids of the jobs that tests look at."""

    def __init__(self, world: World) -> None:
        self.world, self.url, self.token = world, str(world.client.base_url).rstrip("/"), world.settings.files.token.read_text().strip()
        world.call(_ten_thousand, world.store, world.submit(name="old", labels={"team": "archive"})["id"])
        self.long = world.start(name="long")
        world.call(_million_points, world.store, self.long)
        self.by_state = {state: _in_state(world, state) for state in (*PATHS, State.QUEUED, State.STARTING)}
        self.other = _trained(world, "resnet18-local", {"kind": "batch_norm"}, 0.8)
        ask = {"spec": SPEC | {"name": "kinds"}, "values": ["sync_bn", "group_norm"]}
        self.comparison = world.client.post("/v1/comparisons", json=ask).json()["id"]
        self.job = _trained(world, "resnet18-sync", {"kind": "sync_bn"}, 1.0)


async def _ten_thousand(store: Any, template: str) -> None:
    """Store copies of a job, as many as a year brings."""
    changed = {"id": "printf('job_%026d', i)", "name": "printf('sweep-%05d', i)", "state": "'succeeded'", "reason": "'done'"}
    columns = [column.name for column in jobs.columns]
    copied = ", ".join(changed.get(name, name) for name in columns)
    statement = f"{_NUMBERS} INSERT INTO jobs ({', '.join(columns)}) SELECT {copied} FROM n, jobs WHERE id = :template"
    async with store._database.write(template) as write:
        await write.connection.execute(text(statement), {"last": NUM_JOBS - 1, "template": template})


async def _million_points(store: Any, job_id: str) -> None:
    """Store a series as long as a week of training, with one peak that must not be lost."""
    value = f"CASE i WHEN {PEAK} THEN 9.0 ELSE 2.0 / (1 + i / 1e5) + (i % 97) / 500.0 END"
    statement = f"{_NUMBERS} INSERT INTO metric_points SELECT :job_id, 'train/loss', i, {value} FROM n"
    async with store._database.write(job_id) as write:
        await write.connection.execute(text(statement), {"last": NUM_POINTS - 1, "job_id": job_id})
        await roll(write, job_id, "train/loss", [0, NUM_POINTS - 1], None)


def _in_state(world: World, state: State) -> str:
    if state is State.QUEUED:
        return world.submit(name="waiting", priority=3)["id"]
    if state is State.STARTING:
        job_id = world.submit(name="starting")["id"]
        world.call(world.store.attempts.begin, job_id, "first", 2)
        return job_id
    job_id = world.start(name=f"is-{state}")
    before = State.RUNNING
    for following in PATHS[state]:
        message = f"the model raised ValueError: {HOSTILE}" if following is State.FAILED else ""
        reason = {State.FAILED: "task_error", State.SUCCEEDED: "done", State.RECOVERING: "rank_lost"}.get(following, "user")
        assert world.call(world.store.jobs.transition, job_id, following, from_={before}, reason=reason, message=message)
        before = following
    return job_id


def _trained(world: World, name: str, norm: dict[str, Any], speed: float) -> str:
    """Let a job report what a job reports: metrics, log lines with hostile words, a recovery, a resize, checkpoints with statistics."""
    job_id = world.start(name=name, norm=norm, labels={"team": "vision"})
    began = datetime.now(UTC) - timedelta(minutes=40)
    told = [*_steps(speed), *_words()]
    events = [
        said(seq, type_, **data).model_copy(update={"at": began + timedelta(seconds=seq - 1)}) for seq, (type_, data) in enumerate(told, 1)
    ]
    world.say(job_id, 0, *events)
    lines = [f"hello of rank 1, line {seq}" for seq in range(1, 6)]
    world.say(job_id, 1, *(said(seq, EventType.LOG, stream="stdout", level="info", message=line) for seq, line in enumerate(lines, 1)))
    _checkpoints(world, job_id, len(events), began)
    return job_id


def _steps(speed: float) -> Iterator[tuple[EventType, dict[str, Any]]]:
    """Yield what the training reports: a metrics event a step, a recovery, a resize, telemetry."""
    for step in range(1, 301):
        values = {
            "train/loss": 2.3 * math.exp(-step * speed / 120) + 0.05 * math.sin(step * 1.7),
            "lr": 0.1 * min(1.0, step / 30) * (1 - step / 400),
        }
        if step % 10 == 0:
            values |= {
                "val/accuracy": 1 - 0.9 * math.exp(-step * speed / 90),
                "val/loss": 2.2 * math.exp(-step * speed / 130),
                "throughput/samples_per_s": 900 + step % 50,
            }
        yield EventType.METRICS, {"step": step, "total_steps": 400, "epoch": step / 40, "samples": step * 128, "values": values}
        if step == 140:
            message = "rank 1 lost at step 140; the others keep the state; recovery 1 of 10"
            yield EventType.RECOVERY, {"generation": 2, "ranks": [1], "step": 140, "used": 1, "budget": 10, "message": message}
        if step == 220:
            told = {"samples_per_rank": [43, 42], "why": "room_returned", "message": "3 workers instead of 2"}
            yield EventType.RESIZE, {"generation": 3, "step": 220, "old_world_size": 2, "new_world_size": 3, **told}
    for step in range(50, 2050, 50):
        yield EventType.TELEMETRY, {"step": step, "layers": _layers_at(step), "num_left_out": 0}


def _words() -> Iterator[tuple[EventType, dict[str, Any]]]:
    """Yield log lines: hostile ones, and many."""
    yield EventType.LOG, {"stream": "stderr", "level": "error", "message": HOSTILE}
    yield EventType.LOG, {"stream": "stdout", "level": None, "message": "\x1b[31mred\x1b[0m after an escape"}
    for number in range(700):
        message = f"step {number} of the loader: 128 samples in {number % 7 + 1} ms"
        yield EventType.LOG, {"stream": "log", "level": "warning" if number % 90 == 0 else "info", "message": message}


def _checkpoints(world: World, job_id: str, last_seq: int, began: datetime) -> None:
    """Publish two checkpoints, the second with statistics that are not sound."""
    found = {"layer": LAYERS[3]["name"], "code": "dead_channels", "message": f"3 of 64 channels never vary {HOSTILE}"}
    health = {"status": "unhealthy", "findings": [found]}
    first, second = ((began + timedelta(minutes=minutes)).isoformat() for minutes in (5, 9))
    files = api_world.model
    api_world.model = _model
    try:
        world.checkpoint(job_id, 100, seq=last_seq + 1, layers=LAYERS, created_at=first)
        world.checkpoint(job_id, 200, seq=last_seq + 2, layers=LAYERS, health=health, accuracy=0.75, created_at=second)
    finally:
        api_world.model = files


def _model(step: int) -> bytes:
    """Return running statistics that look like those of a network after some steps."""
    rng = np.random.default_rng(step)
    tensors = {}
    for layer in LAYERS:
        tensors[f"{layer['name']}.running_mean"] = rng.normal(0, 0.2 + step / 1000, layer["num_channels"]).astype(np.float32)
        tensors[f"{layer['name']}.running_var"] = rng.gamma(2, 0.4 + step / 1000, layer["num_channels"]).astype(np.float32)
        tensors[f"{layer['name']}.num_batches_tracked"] = np.array(step, np.int64)
    return save(tensors)


def _layers_at(step: int) -> list[dict[str, Any]]:
    """Return what a rank tells of its layers at a step; the third of them drifts around step 1200."""
    told = []
    for at, layer in enumerate(LAYERS):
        drift = 0.05 + 0.02 * at + (0.8 * math.exp(-(((step - 1200) / 200) ** 2)) if at == 2 else 0.3 * math.exp(-step / 300))
        record = {"name": layer["name"], "num_ranks": 4, "num_calls": 1, "num_reductions": 2, "bytes_sent": 16 * layer["num_channels"] + 8}
        record |= {"time_s": 2e-4 * (at + 1), "num_values": 32768.0, "mean_drift": drift, "variance_drift": drift / 2}
        told.append(record | {"between_to_within": 0.004 * (at + 1), "effective_num_values": 30000.0 / (at + 1)})
    return told
