"""What our jobs are compared with: a hand-written training of the same model, with DistributedDataParallel and local BatchNorm.

    python -m tests.benchmarks.stock_training ddp OUT STEPS          one rank, told as torchrun tells it
    python -m tests.benchmarks.stock_training meeting OUT STEPS      the same, but that every norm waits for the others, as little as can be
    python -m tests.benchmarks.stock_training ray-train OUT STEPS    the driver of a Ray job that uses Ray Train

Rank 0 appends a line to OUT/steps after every step: how many steps the model has by then, and the time, seconds since the epoch. Under
Ray Train every worker leaves its process id in OUT/pid-RANK, and a checkpoint is reported every CHECKPOINT_STEPS.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from worker.contract import parse_spec
from worker.data.registry import build_data
from worker.models.resnet import ResNet

BATCH = 64
"""Over all ranks."""
NUM_SAMPLES = 1024
CHECKPOINT_STEPS = 10
SPEC: dict[str, Any] = {
    "name": "bench",
    "model": {"name": "resnet18"},
    "data": {"name": "synthetic", "args": {"num_samples": NUM_SAMPLES, "num_test_samples": 8, "image_size": 32}},
    "batch_size": BATCH,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "resources": {"workers": 2},
}


class Meeting(nn.BatchNorm2d):
    """A local BatchNorm that waits for the other ranks where a synchronized one must, and does nothing with what it hears.

    What a step takes with it is what no synchronized BatchNorm can do without: the wire, and the ranks' waiting for the slowest, layer by
    layer.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One all_reduce of 2C + 1 float64, and in backward one of 2C."""
        return super().forward(_Meet.apply(x, 2 * self.num_features))


class _Meet(torch.autograd.Function):
    """The input, behind a reduction of so many numbers and one more; on the way back of so many."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, count: int) -> torch.Tensor:
        ctx.count = count
        dist.all_reduce(torch.ones(count + 1, dtype=torch.float64))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        dist.all_reduce(torch.ones(ctx.count, dtype=torch.float64))
        return dy, None


def parts(rank: int, world_size: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> tuple[Any, Any]:
    """Return the model on the CPU and one rank's loader, as somebody writes them who has no service."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = build_data(parse_spec({**SPEC, "steps": 1}).data, 0).train
    images, labels = data.batch(np.arange(NUM_SAMPLES), 0)
    samples = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    loader = DataLoader(samples, BATCH // world_size, sampler=DistributedSampler(samples, world_size, rank))
    return ResNet(18, images.shape[1], data.num_classes, norm=norm), loader


def train(model: Any, loader: Any, steps: range, after_step: Callable[[int], None]) -> None:
    """Take the steps with these numbers, counted from 0."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    batches = iter(loader)
    for step in steps:
        x, y = next(batches, (None, None))
        if x is None:
            batches = iter(loader)
            x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
        after_step(step + 1)


def record(out: Path, rank: int, step: int) -> None:
    """Leave a completed step on record, on rank 0."""
    if rank == 0:
        with (out / "steps").open("a") as steps:
            steps.write(f"{step} {time.time()}\n")


def ddp(out: Path, steps: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
    """Be one rank of a plain script."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, loader = parts(rank, dist.get_world_size(), norm)
    train(DistributedDataParallel(model), loader, range(steps), lambda step: record(out, rank, step))
    dist.destroy_process_group()


def ray_train(out: Path, steps: int) -> None:
    """Be the driver of a Ray job."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = RunConfig(storage_path=str(out), name="run", failure_config=FailureConfig(max_failures=-1))
    TorchTrainer(
        _ray_worker, train_loop_config={"out": str(out), "steps": steps}, scaling_config=ScalingConfig(num_workers=2), run_config=run
    ).fit()


def _ray_worker(config: dict[str, Any]) -> None:
    from ray import train as ray
    from ray.train.torch import prepare_model

    context = ray.get_context()
    rank, out = context.get_world_rank(), Path(config["out"])
    model, loader = parts(rank, context.get_world_size())
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    begin = 0
    if last := ray.get_checkpoint():
        with last.as_directory() as directory:
            state = torch.load(Path(directory) / "state.pt")
            begin = state["step"]
            model.load_state_dict(state["model"])

    model = prepare_model(model)

    def after_step(step: int) -> None:
        record(out, rank, step)
        if step % CHECKPOINT_STEPS:
            return
        with tempfile.TemporaryDirectory() as directory:
            if rank == 0:
                torch.save({"step": step, "model": model.module.state_dict()}, Path(directory) / "state.pt")
            ray.report({"step": step}, checkpoint=ray.Checkpoint.from_directory(directory) if rank == 0 else None)

    train(model, loader, range(begin, config["steps"]), after_step)


if __name__ == "__main__":
    {"ddp": ddp, "meeting": partial(ddp, norm=Meeting), "ray-train": ray_train}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
