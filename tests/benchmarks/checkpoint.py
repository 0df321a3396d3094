"""What a checkpoint costs the training thread: copied and published in the background, against torch.save in the thread itself.

    python -m tests.benchmarks.checkpoint [--rounds N]

The state is ResNet-50's, with a momentum for every parameter: 205 MB. What trains meanwhile, in one thread, is a small convolutional
network, whose calls are short and want Python's lock more often than ResNet-50's, and whose steps are so short that they come to the gate,
before the optimizer, while the state is still being copied; and then, in other rounds, ResNet-50 itself, on 8 images of 32 x 32. Every
round saves as rank 0 does, by `worker.course`; once more so, but with the state copied before training goes on, as for models of users'
own; and by `torch.save` and fsync: all to the same file system.

Lost is what the thread computed for the save and at the gates, and how long it was blocked during the phase: at the gate, on the disk, or
on Python's lock while a writer held it. Linux accounts for waiting for a core apart (schedstat); that is not counted, so other work on the
machine matters at the gate alone, where the copy may have waited for a core. Neither does the work of the writer itself where no core is
free for it, nor what the copy takes of the memory's bandwidth from the steps beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tests.support.jobs import JOB, MARKER, small_spec
from worker.contract.assignment import Assignment
from worker.course import Course
from worker.holding import Holding
from worker.orders import Orders
from worker.progress import EventBuffer
from worker.publisher import Publisher
from worker.pulse import Pulse
from worker.ranks import Ranks
from worker.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    Train = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Lost:
    """Seconds of the training thread lost to one checkpoint."""

    begin_s: float
    """Computed until training went on."""
    gate_s: float
    """At the gates, by the clock."""
    all_s: float
    """Computed, at the gates too, or blocked."""


@dataclass(frozen=True)
class Stall:
    """One round."""

    background: Lost
    on_the_spot: Lost
    """The same, but training does not go on before the copy is made."""
    synchronous: Lost


def main() -> None:
    """Print the medians over all rounds, and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for is_small in (True, False):
        print("a small network trains" if is_small else "ResNet-50 trains")
        _show(measure(options.rounds, is_small=is_small))


def _show(stalls: list[Stall]) -> None:
    for way in ("background", "on_the_spot", "synchronous"):
        of_way = [getattr(stall, way) for stall in stalls]
        print(f"{way:12}", *(f"{part} {_spread([getattr(lost, f'{part}_s') for lost in of_way])}" for part in ("begin", "gate", "all")))
    background, on_the_spot, synchronous = (
        statistics.median(getattr(stall, way).all_s for stall in stalls) for way in ("background", "on_the_spot", "synchronous")
    )
    print(f"background / synchronous {background / synchronous:.3f}; copied on the spot {on_the_spot / synchronous:.3f}")


def _spread(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):6.1f} ms ({1e3 * min(seconds):.1f}-{1e3 * max(seconds):.1f})"


def measure(rounds: int, *, is_small: bool = True) -> list[Stall]:
    """Return the stalls of so many rounds, after one that is not counted; with a small network training, or ResNet-50."""
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="stall-"))
    try:
        course = _course(directory)
        step = _small_step(course.holding.copying.settle) if is_small else _step_of(course)
        found = [_round(3 * number, course, directory, step) for number in range(1, rounds + 2)]
        course.holding.trainer.close()
        return found[1:]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _course(directory: Path) -> Course:
    """Return the course of the only rank of a job that trains ResNet-50, after one update."""
    data = {"name": "synthetic", "args": {"num_samples": 8, "num_test_samples": 8, "num_classes": 1000}}
    spec = small_spec(model={"name": "resnet50"}, data=data, batch_size=8, checkpoint={"keep_last": 1})
    assignment = Assignment(
        job_id=JOB, attempt=1, fence=1, rank=0, world_size=1, spec=spec, storage=directory, marker=MARKER, store_host="", store_port=0
    )
    events, storage = EventBuffer(), LocalStorage(directory)
    holding = Holding(assignment, torch.device("cpu"), storage, events)
    for parameter in holding.trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    holding.trainer.optimizer.step()
    publisher = Publisher(storage, JOB, spec.checkpoint, events)
    return Course(holding, assignment, Ranks(0, 1, torch.device("cpu")), publisher=publisher, orders=Orders(), pulse=Pulse())


def _round(step: int, course: Course, directory: Path, train: Train) -> Stall:
    trainer, gate = course.holding.trainer, course.holding.copying.settle

    def background() -> None:
        course._save({})

    def on_the_spot() -> None:
        course._save({})
        gate()

    def synchronous() -> None:
        with (directory / "synchronous.pt").open("wb") as file:
            torch.save([trainer.model.state_dict(), trainer.optimizer.state_dict()], file)
            file.flush()
            os.fsync(file.fileno())

    lost = []
    for number, save in enumerate((background, on_the_spot, synchronous)):
        course.holding.step = step + number
        lost.append(_lost(save, course.publisher, train))
    return Stall(*lost)


def _lost(save: Callable[[], None], publisher: Publisher, train: Train) -> Lost:
    """Save, then train until nothing is being written any more; return what the thread lost to it."""
    at_gates = []
    blocked_before, start = _blocked_s(), time.thread_time()
    save()
    computed = time.thread_time() - start
    while True:
        at_gates.append(train())
        if not publisher.is_writing:
            blocked = _blocked_s() - blocked_before
            computed_at_gates, at_gates_s = (sum(parts) for parts in zip(*at_gates, strict=True))
            return Lost(computed, at_gates_s, computed + computed_at_gates + blocked)


def _small_step(gate: Callable[[], None]) -> Train:
    layers = [layer for _ in range(4) for layer in (nn.LazyConv2d(32, 3), nn.LazyBatchNorm2d(), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.randn(8, 3, 32, 32)
    model(x)
    return partial(_step, model, x, torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9), gate)


def _step_of(course: Course) -> Train:
    """Return the step of what is saved."""
    trainer = course.holding.trainer
    return partial(_step, trainer.model, torch.randn(8, 3, 32, 32), trainer.optimizer, course.holding.copying.settle)


def _step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, gate: Callable[[], None]) -> tuple[float, float]:
    """Train one step, whose update comes after the gate; return how long that took, of the processor and by the clock."""
    torch.autograd.backward(model(x).square().mean())
    computed_s, start_s = time.thread_time(), time.monotonic()
    gate()
    took = time.thread_time() - computed_s, time.monotonic() - start_s
    optimizer.step()
    optimizer.zero_grad()
    return took


def _blocked_s() -> float:
    """Return how long this thread was neither computing nor waiting for a core, counted from some moment."""
    computing_ns, waiting_ns, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
    return time.monotonic() - (computing_ns + waiting_ns) / 1e9


if __name__ == "__main__":
    main()
