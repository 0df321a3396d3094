"""Fills a home before its controller starts: many jobs, written straight into the tables, and one with a large checkpoint."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.states import State
from service.store.ids import new_job_id
from service.store.records import Progress
from service.store.store import Store
from service.store.tables import job_labels, jobs, needs, transitions
from tests.support.checkpoints import draft
from worker.contract import FileEntry, checkpoint_name, checkpoints_directory, parse_spec

SPEC = {"name": "benchmark", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "steps": 3, "labels": {"team": "vision"}}
STEP = 3
FILE = "model.safetensors"
_CHUNK = 5_000


async def fill(store: Store, count: int) -> list[str]:
    """Store `count` jobs, oldest first, a tenth of them queued and the others succeeded; return their ids."""
    ids = [new_job_id() for _ in range(count)]
    spec, begin = parse_spec(SPEC), datetime(2026, 1, 1, tzinfo=UTC)
    row = {"name": "benchmark", "message": "", "labels": spec.labels, "progress": asdict(Progress()), "world_size": 1, "fence": 0}
    row |= {"attempt": 0, "spec": spec.model_dump(mode="json"), "last_seq": 0, "edition": 1, "priority": 0, "metrics": {"train/loss": 0.5}}
    need = {"min_workers": 1, "max_workers": 1, "cpus_per_worker": 1.0, "gpus_per_worker": 0, "timeout_s": 86_400.0}
    async with store._database.write("benchmark") as write:
        for first in range(0, count, _CHUNK):
            part = list(enumerate(ids[first : first + _CHUNK], first))
            made = {job_id: (begin + timedelta(seconds=number), _history(number)) for number, job_id in part}
            states = [{"id": one, "state": history[-1], "reason": history[-1], "created_at": at} for one, (at, history) in made.items()]
            moves = [
                {"job_id": one, "number": number, "state": state, "reason": "x", "message": "", "at": at}
                for one, (at, history) in made.items()
                for number, state in enumerate(history, 1)
            ]
            await write.connection.execute(jobs.insert(), [row | one for one in states])
            await write.connection.execute(needs.insert(), [need | {"job_id": one} for one in made])
            await write.connection.execute(job_labels.insert(), [{"job_id": one, "key": "team", "value": "vision"} for one in made])
            await write.connection.execute(transitions.insert(), moves)
    return ids


def _history(number: int) -> list[State]:
    return [State.QUEUED] if number % 10 == 0 else [State.QUEUED, State.STARTING, State.RUNNING, State.SUCCEEDED]


def write_checkpoint(storage: Path, job_id: str, size_bytes: int) -> Path:
    """Publish a checkpoint of one file as a rank would; the controller finds it at its start. Return the file."""
    directory = storage / checkpoints_directory(job_id) / checkpoint_name(STEP)
    directory.mkdir(parents=True)
    digest, block = hashlib.sha256(), os.urandom(min(size_bytes, 2**20))
    with (directory / FILE).open("wb") as file:
        for begin in range(0, size_bytes, len(block)):
            part = block[: size_bytes - begin]
            file.write(part)
            digest.update(part)
    entry = FileEntry(size=size_bytes, sha256=digest.hexdigest())
    manifest = draft(STEP).model_copy(update={"job_id": job_id, "files": {FILE: entry}})
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    return directory / FILE
