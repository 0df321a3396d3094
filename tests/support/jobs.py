"""Run whole jobs on a pool of processes, without Ray: what a gang does, with the real store, process group, data and checkpoints.

Owns: specs for tests, the assignment of every rank, and what each rank said. Every wait is bounded by the pool.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.contract import Assignment, FailureCode, JobFailure, JobSpec, parse_spec
from worker.progress import EventBuffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.ranks import RankPool

JOB = "job_" + "0" * 25 + "A"
OTHER_JOB = "job_" + "0" * 25 + "B"
MARKER = "shared.marker"
PORT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RankRun:
    """How one rank ended, and what it said."""

    outcome: str
    failure: JobFailure | None
    events: list[tuple[str, dict[str, Any]]]
    seconds_to_end: float

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The data of the events of one type."""
        return [data for type_, data in self.events if type_ == kind]

    def series(self, name: str) -> list[float]:
        """The values of one metric in order."""
        return [data["values"][name] for data in self.of("metrics") if name in data["values"]]


@dataclass(frozen=True)
class Faults:
    """What goes wrong, where. Steps are counted from 0."""

    raise_on: tuple[int, int] | None = None
    """(rank, step): the data of this rank raises."""
    nan_on: tuple[int, int] | None = None
    """(rank, step): the data of this rank is not a number."""
    stop_on: tuple[int, int] | None = None
    """(rank, step): this rank is asked to stop before the step."""
    environment: dict[str, str] = field(default_factory=dict)


def small_spec(workers: int = 1, **overrides: Any) -> JobSpec:
    """The smallest job that has every part: a ResNet-18 of width 4 on the digits."""
    raw = {
        "name": "test",
        "model": {"name": "resnet18", "args": {"width": 4}},
        "data": {"name": "digits"},
        "batch_size": 97,
        "steps": 3,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "resources": {"workers": workers},
    }
    return parse_spec(raw | overrides)


def run_job(
    pool: RankPool,
    spec: JobSpec,
    storage: Path,
    *,
    job_id: str = JOB,
    attempt: int = 1,
    resume: str | None = None,
    marker: str = MARKER,
    faults: Faults | None = None,
    address: str = "",
    code_sha256: str | None = None,
    program: Callable[..., Any] | None = None,
    more: tuple[Any, ...] = (),
) -> list[RankRun]:
    """Run every rank of a job to its end; a rank that fails is reported, not raised. The checkpoints go to `address` where it is given.

    `program` runs instead of `run_one_rank`, with `more` arguments.
    """
    (storage / MARKER).write_text("here")
    common = {
        "job_id": job_id,
        "attempt": attempt,
        "fence": attempt,
        "spec": spec,
        "storage": address or str(storage),
        "marker": marker,
        "resume": resume,
        "code_sha256": code_sha256,
    }
    port_file = str(storage / f".port-{uuid.uuid4().hex}")
    answers = pool.run(spec.resources.workers, program or run_one_rank, common, port_file, faults or Faults(), *more)
    return [RankRun(*answer) for answer in answers]


def run_one_rank(
    rank: int, world_size: int, common: dict[str, Any], port_file: str, faults: Faults, *, node_ip: str = "127.0.0.1"
) -> tuple[Any, ...]:
    """The program of a rank on the node with this address: meet, run, report the fields of a RankRun."""
    from worker.errors import to_failure
    from worker.orders import Orders
    from worker.session import run_rank

    os.environ.update(faults.environment)
    store, store_host, port = meeting_store(rank, port_file, node_ip)
    events, orders = EventBuffer(), Orders()
    assignment = Assignment(rank=rank, world_size=world_size, store_host=store_host, store_port=port, **common)
    orders.serve(1, store)
    orders.assign(assignment)
    # Nobody replaces a lost rank here: who loses its peers ends at once, with them as the reason.
    os.environ["SYNCBN_PARK_TIMEOUT_S"] = "0.01"
    failure = None
    started = time.monotonic()
    with Planted(faults, rank, orders):
        try:
            outcome: str = run_rank(orders, events)
        except Exception as error:  # noqa: BLE001  the test looks at it
            outcome, failure = "failed", to_failure(error, rank)
    said, _ = events.drain(0, 0, 1_000_000)
    return (outcome, failure, [(event.type.value, event.data) for event in said], time.monotonic() - started)


def meeting_store(rank: int, port_file: str, node_ip: str = "127.0.0.1") -> tuple[Any, str, int]:
    """Leave the pool's group; return the store where ranks are to meet, on rank 0, which hosts it, and everywhere its host and port."""
    import torch.distributed as dist

    from worker.meeting import bind_interface, host_store
    from worker.ranks import leave

    if dist.is_initialized():
        # All must have formed the pool's own group before one may leave it.
        dist.barrier()
        leave()
    bind_interface(node_ip)
    store = host_store(node_ip) if rank == 0 else None
    host, port = _announce(port_file, node_ip, store.port) if store is not None else _await(port_file)
    return store, host, port


class Planted:
    """Plant faults into the trainer for the length of a run."""

    def __init__(self, faults: Faults, rank: int, orders: Any) -> None:
        self._faults, self._rank, self._orders = faults, rank, orders

    def __enter__(self) -> None:
        from worker.training import Trainer

        self._step, faults, rank, orders = Trainer.step, self._faults, self._rank, self._orders

        def step(trainer: Trainer, number: int, asked: Any) -> Any:
            if (rank, number) == faults.raise_on:
                trainer._data.batch = _raise
            if (rank, number) == faults.nan_on:
                trainer._data.batch = _not_a_number(trainer._data.batch)
            if (rank, number) == faults.stop_on:
                orders.ask_to_stop()
            return self._step(trainer, number, asked)

        Trainer.step = step

    def __exit__(self, *_: object) -> None:
        from worker.training import Trainer

        Trainer.step = self._step


def _raise(step: int, part: int) -> Any:
    raise ValueError("sample 7 is broken")


def _not_a_number(batch: Any) -> Any:
    def broken(step: int, part: int) -> Any:
        x, y = batch(step, part)
        return x * float("nan"), y

    return broken


def _announce(port_file: str, host: str, port: int) -> tuple[str, int]:
    temporary = Path(f"{port_file}.tmp")
    temporary.write_text(json.dumps([host, port]))
    temporary.rename(port_file)
    return host, port


def _await(port_file: str) -> tuple[str, int]:
    deadline = time.monotonic() + PORT_TIMEOUT_S
    while not Path(port_file).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 has not announced its port in {port_file}")
        time.sleep(0.005)
    host, port = json.loads(Path(port_file).read_text())
    return str(host), int(port)


__all__ = ["JOB", "MARKER", "OTHER_JOB", "FailureCode", "Faults", "RankRun", "meeting_store", "run_job", "run_one_rank", "small_spec"]
