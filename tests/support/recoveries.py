"""Whole jobs under the real controller on ranks that are killed, and what they left behind, to be compared in every bit."""

import asyncio
import inspect
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from service.states import TERMINAL, State
from service.store.records import Event, Job
from service.store.store import Store
from tests.support import faults
from tests.support.gates import Gates
from tests.support.process_cluster import ProcessCluster, ProcessGang
from tests.support.world import World
from worker.contract import EventType, checkpoint_name, checkpoints_directory

STEPS = 7
# Three steps an epoch, checkpoints at 3, 6 and 7, shares of 11, 11 and 10 samples.
SPEC: dict[str, Any] = {
    "model": {"name": "resnet18", "args": {"width": 2}},
    "data": {"name": "synthetic", "args": {"num_samples": 96, "num_test_samples": 12, "image_size": 8}},
    "batch_size": 32,
    "steps": STEPS,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "recalibrate": {"num_samples": 64},
    "resources": {"workers": 3},
}

_AT_WORK = frozenset({"training", "recalibrating", "evaluating", "finishing"})


@dataclass(frozen=True)
class Left:
    """What a job left behind."""

    job: Job
    events: list[Event]
    states: list[State]
    series: dict[str, list[tuple[int, float]]]
    tensors: dict[str, torch.Tensor]
    """Of the last checkpoint: parameters, buffers, optimizer."""

    def recoveries(self) -> list[dict[str, Any]]:
        """The data of the recovery events."""
        return [event.data for event in self.events if event.type is EventType.RECOVERY]

    def longest_recovery_s(self) -> float:
        """The longest time from a recovery's beginning to the next event of any kind that only a rank at work emits; 0 without any."""
        took, began = [0.0], None
        for event in self.events:
            if event.type is EventType.RECOVERY:
                began = event.at
            elif began is not None and event.type is EventType.STATE and event.data.get("phase") in _AT_WORK:
                took.append((event.at - began).total_seconds())
                began = None
        return max(took)


Disturb = Callable[[World, str, ProcessGang], Awaitable[None]]


def run_job(
    folder: Path,
    wishes: list[dict[str, Any]] | None = None,
    disturb: Disturb | None = None,
    source: dict[str, Any] | None = None,
    timeout_s: float = 90.0,
    *,
    gates: tuple[int, ...] = (),
    cpus: int = 64,
    **change: Any,
) -> Left:
    """Run a job to its end under the real controller, on ranks of one CPU each, beginning with the checkpoint of the job `source`.

    `disturb` runs beside it, and opens the gates.
    """
    planted = None if wishes is None else (inspect.getfile(faults), "plant", wishes)
    if gates:
        planted = (inspect.getfile(Gates), "plant", Gates(folder, gates))
    cluster = ProcessCluster(planted, cpus)
    try:
        return asyncio.run(_run(folder, cluster, disturb, SPEC | change, source, timeout_s))
    finally:
        cluster.close()


async def kill_now_and_then(
    world: World,
    job_id: str,
    gang: ProcessGang,
    *,
    seed: int,
    number: int,
    pauses_s: Sequence[tuple[float, float]] = ((0.05, 1.5),),
    share_at_work: float = 0.0,
    killed: list[int],
) -> None:
    """Kill ranks, one or two at once, at random moments, until so many were killed or the job is over.

    Args:
        world, job_id, gang: see Disturb.
        seed: of the moments and the victims.
        number: of kills.
        pauses_s: shortest and longest pause before a kill; each time one pair is drawn.
        share_at_work: of the kills, before whose pause all ranks are at work again, however long that takes; the others may fall into the
            recovery from the kill before.
        killed: the ranks that were killed are added to it.
    """
    moments = random.Random(seed)
    while len(killed) < number:
        is_at_work = moments.random() >= share_at_work
        while not is_at_work:
            job = await world.store.jobs.get(job_id)
            gang = world.cluster.gangs.get((job_id, job.attempt), gang)
            has_all = all(rank.process.is_alive() for rank in gang.ranks.values())
            is_at_work = job.state in TERMINAL or (job.state is State.RUNNING and has_all)
            await asyncio.sleep(0.01)
        await asyncio.sleep(moments.uniform(*moments.choice(pauses_s)))
        job = await world.store.jobs.get(job_id)
        if job.state in TERMINAL:
            return
        gang = world.cluster.gangs.get((job_id, job.attempt), gang)
        for rank in moments.sample(sorted(gang.ranks), min(moments.choice([1, 1, 1, 2]), number - len(killed))):
            process = gang.ranks[rank].process
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                killed.append(rank)


async def _run(  # noqa: PLR0917 - called once, by `run_job`
    folder: Path,
    cluster: ProcessCluster,
    disturb: Disturb | None,
    spec: dict[str, Any],
    source: dict[str, Any] | None,
    timeout_s: float,
) -> Left:
    async with await Store.open(f"sqlite:///{folder / 'test.db'}") as store:
        world = World(store, cluster, folder)
        async with world.controller():
            if source is not None:
                source_id = await world.submit(1, **SPEC | source)
                await world.until(source_id, State.SUCCEEDED, State.FAILED, timeout_s=90)
                spec = spec | {"initialize_from": f"{source_id}/checkpoints/latest"}
            job_id = await world.submit(0, **spec)
            if disturb is not None:
                async with asyncio.timeout(timeout_s):
                    while (job_id, 1) not in cluster.gangs:
                        await asyncio.sleep(0.005)
                    await disturb(world, job_id, cluster.gangs[job_id, 1])
            job = await world.until(job_id, State.SUCCEEDED, State.FAILED, timeout_s=timeout_s)
        return await _left(store, folder, job)


async def _left(store: Store, folder: Path, job: Job) -> Left:
    events = await store.events.page(job.id, 0, 100_000)
    series = {name: await store.metrics.points(job.id, name, 100_000) for name in await store.metrics.names(job.id)}
    last = folder / checkpoints_directory(job.id) / checkpoint_name(job.spec.steps or 0)
    tensors = {}
    if last.is_dir():
        tensors = load_file(last / "model.safetensors") | load_file(last / "training.safetensors")
    states = [transition.state for transition in (await store.jobs.transitions_of([job.id]))[job.id]]
    return Left(job, events, states, series, tensors)


def assert_undisturbed(left: Left, expected: Left, *, is_restart_possible: bool = False) -> None:
    """Assert that a disturbed job ended as the undisturbed one: every bit of the state, every step on record once, no gap.

    Args:
        left: by the disturbed one.
        expected: by the undisturbed one.
        is_restart_possible: all ranks may have died at once; then steps since the last checkpoint are done and reported twice.
    """
    assert left.job.state is State.SUCCEEDED, f"{left.job.reason}: {left.job.message}"
    assert left.tensors.keys() == expected.tensors.keys()
    different = [name for name, tensor in expected.tensors.items() if not torch.equal(tensor, left.tensors[name])]
    assert different == []
    for name in ("train/loss", "train/accuracy", "lr", "val/loss", "val/accuracy"):
        assert left.series[name] == expected.series[name], name
    assert [event.seq for event in left.events] == list(range(1, len(left.events) + 1))
    assert [event.type for event in left.events].count(EventType.END) == 1
    trained = [event.data["step"] for event in left.events if event.type is EventType.METRICS and "train/loss" in event.data["values"]]
    if State.QUEUED in left.states[1:] and is_restart_possible:
        trained = sorted(set(trained))
    assert trained == [step for step, _ in expected.series["train/loss"]], "every step once, in order"
