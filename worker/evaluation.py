"""Evaluation with running statistics, every sample once, whatever the world size. Owns the sums; not when to evaluate."""

import threading

import numpy as np
import torch
from torch import Tensor, nn

from worker.data.split import Indices, Split
from worker.errors import DataError, TaskError, blame
from worker.ranks import Ranks
from worker.sampler import evaluation_batches
from worker.tasks.task import Task, checked_losses, checked_sums
from worker.training import Precision


class StoppedError(Exception):
    """Some rank was asked to stop during an evaluation, whose result is therefore worth nothing."""


def evaluate(
    model: nn.Module, task: Task, data: Split, ranks: Ranks, precision: Precision, *, batch_size: int, stop: threading.Event
) -> dict[str, float]:
    """Return val/loss, the mean over all samples of a split, and under val/ the metrics of the task.

    Args:
        batch_size: samples per forward pass on this rank; does not change the result, but for rounding.
        stop: ends the evaluation early, on every rank.
    Raises:
        StoppedError: on every rank, when any was asked to stop.

    Collectives: one all_reduce of 3 + K float64 for a task with K sums, at the end. Every rank must call.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), blame(TaskError):
        measured = []
        for indices in evaluation_batches(data.num_samples, ranks.rank, ranks.world_size, batch_size):
            if stop.is_set():
                break
            measured.append(_measure(model, task, data, precision, indices))
        # An empty batch tells a rank without samples how many sums there are.
        totals = torch.stack(measured or [_measure(model, task, data, precision, np.empty(0, np.int64))]).sum(0)
        totals = ranks.sum(torch.cat([totals.new_full((1,), float(stop.is_set())), totals]))
    model.train(was_training)
    num_asked, count, loss, *sums = totals.tolist()
    if num_asked:
        raise StoppedError
    with blame(TaskError):
        metrics = task.metrics(sums, int(count))
    return {"val/loss": loss / count, **{f"val/{name}": value for name, value in metrics.items()}}


def _measure(model: nn.Module, task: Task, data: Split, precision: Precision, indices: Indices) -> Tensor:
    """Return the number of samples, the sum of their losses, and the task's sums, (2 + K,) float64."""
    with blame(DataError):
        x, y = precision.place(*data.batch(indices, 0))
    with precision.forward():
        outputs = model(x)
        loss, sums = checked_losses(task.losses(outputs, y), y).sum(), checked_sums(task.sums(outputs, y))
    count_and_loss = torch.stack([loss.new_tensor(len(indices), dtype=torch.float64), loss.double()])
    return torch.cat([count_and_loss, sums.to(loss.device, torch.float64)])
