"""Evaluation with running statistics, every sample once, whatever the world size. Owns the sums; not when to evaluate."""

import threading

import torch
from torch import nn

from worker.data.split import Split
from worker.errors import DataError, TaskError, blame
from worker.ranks import Ranks
from worker.sampler import evaluation_batches
from worker.tasks.classification import measure
from worker.training import Precision


class StoppedError(Exception):
    """Some rank was asked to stop during an evaluation, whose result is therefore worth nothing."""


def evaluate(
    model: nn.Module, data: Split, ranks: Ranks, precision: Precision, *, batch_size: int, stop: threading.Event
) -> dict[str, float]:
    """Return val/loss and val/accuracy, the means over all samples of a split.

    Args:
        batch_size: samples per forward pass on this rank; does not change the result, but for rounding.
        stop: ends the evaluation early, on every rank.
    Raises:
        StoppedError: on every rank, when any was asked to stop.

    Collectives: one all_reduce of 4 float64, at the end. Every rank must call.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), blame(TaskError):
        for indices in evaluation_batches(data.num_samples, ranks.rank, ranks.world_size, batch_size):
            if stop.is_set():
                sums[3] = 1
                break
            with blame(DataError):
                x, y = precision.place(*data.batch(indices, 0))
            with precision.forward():
                measured = measure(model(x), y)
            sums += torch.stack([measured.loss.double(), measured.num_correct.double(), sums.new_tensor(len(indices)), sums.new_zeros(())])
        ranks.sum(sums)
    model.train(was_training)
    loss, num_correct, count, num_asked = sums.tolist()
    if num_asked:
        raise StoppedError
    return {"val/loss": loss / count, "val/accuracy": num_correct / count}
