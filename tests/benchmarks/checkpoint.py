"""What a checkpoint costs the training thread: copied and published in the background, against torch.save in the thread itself.

    python -m tests.benchmarks.checkpoint [--rounds N] [--scale S]

The state is ResNet-50's: its parameters and buffers, and a momentum for every parameter, 205 MB. What trains meanwhile is a small
convolutional network, in one thread, so that its calls are short and want Python's lock more often than ResNet-50's would. Every round
saves once by `worker.state.Buffers` and `worker.publisher`, and once by `torch.save` and fsync, to the same file system.

Lost is what the thread computed for the save, and how long it was blocked during the phase: on the disk, or on Python's lock while a
writer held it. Linux accounts for waiting for a core apart (schedstat); that is not counted, so other work on the machine does not
matter, and neither does the work of the writer itself where no core is free for it.
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
from torch import Tensor, nn

from tests.support.checkpoints import JOB, draft
from worker.checkpoint import Snapshot
from worker.contract.spec import CheckpointSpec
from worker.progress import EventBuffer
from worker.publisher import Publisher
from worker.state import Buffers
from worker.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Stall:
    """Seconds lost to one checkpoint."""

    copy_s: float
    background_s: float
    """Beyond the copy."""
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

    def background() -> None:
        start = time.thread_time()
        copies = buffers.copy("model", state)
        copied.append(time.thread_time() - start)
        publisher.submit(Snapshot(draft(step), copies, {}, {"step": step}))

    def synchronous() -> None:
        with (directory / "synchronous.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    lost_in_background = _lost(background, publisher)
    return Stall(copied[0], lost_in_background - copied[0], _lost(synchronous, publisher))


def _lost(save: Callable[[], None], publisher: Publisher) -> float:
    """Save, then compute until nothing is being written any more; return what the thread lost to it."""
    train = _training()
    blocked_before, start = _blocked_s(), time.thread_time()
    save()
    lost = time.thread_time() - start
    while True:
        train()
        if not publisher.is_writing:
            return lost + _blocked_s() - blocked_before


def _training() -> Callable[[], None]:
    """Return a function that trains one step."""
    layers = [layer for _ in range(4) for layer in (nn.LazyConv2d(32, 3), nn.LazyBatchNorm2d(), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.randn(8, 3, 32, 32)
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        torch.autograd.backward(model(x).square().mean())
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


def _blocked_s() -> float:
    """Return how long this thread was neither computing nor waiting for a core, counted from some moment."""
    computing_ns, waiting_ns, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
    return time.monotonic() - (computing_ns + waiting_ns) / 1e9


if __name__ == "__main__":
    main()
