"""What a checkpoint costs the training thread: copied and published in the background, against torch.save in the thread itself.

    python -m tests.benchmarks.checkpoint [--rounds N] [--scale S]

The state is ResNet-50's: its parameters and buffers, and a momentum for every parameter, 204 MB. Training is stood in for by matrix
products of one thread. Every round measures, in turn, three phases of as many steps: without a checkpoint, with one by `torch.save` and
fsync before the next step, and with one by `worker.state.Buffers` and `worker.publisher.Publisher`. The lost time of a phase is what it
took beyond the phase without; the copy itself is timed apart. Both write to the same file system.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.support.checkpoints import JOB, draft
from worker.checkpoint import Snapshot
from worker.contract.spec import CheckpointSpec
from worker.progress import EventBuffer
from worker.publisher import Publisher
from worker.state import Buffers
from worker.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 100
"""Of a phase: long enough for a write in the background to end within it."""


@dataclass(frozen=True)
class Stall:
    """Seconds of one round, each for one checkpoint."""

    copy_s: float
    background_s: float
    """Lost beyond the copy."""
    synchronous_s: float


def main() -> None:
    """Print the medians over all rounds, and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of ResNet-50's state")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stalls = measure(options.rounds, options.scale)
    copy, background, synchronous = (
        statistics.median(getattr(stall, name) for stall in stalls) for name in ("copy_s", "background_s", "synchronous_s")
    )
    print(f"copy {copy * 1e3:.0f} ms; lost beyond it {background * 1e3:.1f} ms; torch.save and fsync {synchronous * 1e3:.0f} ms")
    print(f"background / synchronous {(copy + background) / synchronous:.3f}")


def measure(rounds: int, scale: float = 1.0) -> list[Stall]:
    """Return the stalls of so many rounds, after one that is not counted."""
    directory = Path(tempfile.mkdtemp(prefix="stall-"))
    try:
        state, buffers = resnet50_state(scale), Buffers()
        publisher = Publisher(LocalStorage(directory), JOB, CheckpointSpec(keep_last=1, keep_best=None), EventBuffer())
        found = [_round(step, state, buffers, publisher, directory) for step in range(1, rounds + 2)]
        publisher.finish()
        return found[1:]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def resnet50_state(scale: float) -> dict[str, Tensor]:
    """Return tensors of the sizes of ResNet-50's state: 161 parameters with a momentum each, 106 running statistics."""
    shapes = [(64, 3 * 49), *_bottlenecks(), (1000, 2048)]
    state = {}
    for index, (rows, columns) in enumerate(shapes):
        for name in ("weight", "momentum"):
            state[f"{index}.{name}"] = torch.randn(max(1, int(rows * scale)), columns)
        for name in ("running_mean", "running_var", "gamma", "beta", "gamma.momentum", "beta.momentum"):
            state[f"{index}.{name}"] = torch.randn(rows)
    return state


def _bottlenecks() -> list[tuple[int, int]]:
    found, inner = [], 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            found += [(width, inner), (width, width * 9), (4 * width, width)]
            if block == 0:
                found.append((4 * width, inner))
            inner = 4 * width
    return found


def _round(step: int, state: dict[str, Tensor], buffers: Buffers, publisher: Publisher, directory: Path) -> Stall:
    copied = []

    def nothing() -> None:
        pass

    def background() -> None:
        publisher.wait()
        start = time.perf_counter()
        copies = buffers.copy(state)
        copied.append(time.perf_counter() - start)
        publisher.submit(Snapshot(draft(step), copies, {}, {"step": step}))

    def synchronous() -> None:
        with (directory / "synchronous.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    with_background = _phase(background)
    publisher.wait()
    without = _phase(nothing)
    with_synchronous = _phase(synchronous)
    return Stall(copied[0], with_background - without - copied[0], with_synchronous - without)


def _phase(save: Callable[[], None]) -> float:
    a = torch.randn(512, 512)
    start = time.perf_counter()
    save()
    for _ in range(STEPS):
        # About 10 ms, of many short calls: each has to take Python's lock again, and would wait where a writer held it.
        for _ in range(20):
            a = torch.nn.functional.normalize(a @ a)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
