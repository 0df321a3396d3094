"""What a task must offer. Owns the protocol and the check of what a user's own task returns; the tasks are beside it.

Legend: n samples of a batch on this rank, K sums.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from worker.errors import TaskError


@runtime_checkable
class Task(Protocol):
    """What is minimized and what is measured.

    Everything is a sum over samples, which the ranks add up in one all_reduce: so the same on any number of ranks. A ratio such as
    accuracy, IoU or Dice is taken in `metrics`, once, of the sums over the whole global batch or the whole validation set.
    """

    def losses(self, outputs: Any, y: Tensor) -> Tensor:
        """Return the loss of every sample, (n,), with its gradient. Training minimizes their mean over the global batch.

        Args:
            outputs: what the model returned.
            y: the labels of the batch, (n, ...). n is 0 on a rank without a share, where the result is an empty tensor that still
                depends on `outputs`.
        """

    def sums(self, outputs: Any, y: Tensor) -> Tensor:
        """Return what the metrics are made of, added up over the samples of the batch: (K,), without gradient. K never changes."""

    def metrics(self, sums: list[float], num_samples: int) -> Mapping[str, float]:
        """Return metrics by name, from the sums over all ranks and batches.

        A name with a slash (`iou/liver`) is reported of evaluations only, not of every step. `loss` is there already.
        """


def checked_losses(losses: Any, y: Tensor) -> Tensor:
    """Return the losses of a task if they are one per sample.

    Raises:
        TaskError: they are not.
    """
    if not isinstance(losses, Tensor) or losses.shape != (len(y),):
        found = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise TaskError(f"losses of the task are {found}; expected one loss per sample, shape ({len(y)},); do not average over the batch")
    return losses


def checked_sums(sums: Any) -> Tensor:
    """Return the sums of a task if they are a vector.

    Raises:
        TaskError: they are not.
    """
    if not isinstance(sums, Tensor) or sums.dim() != 1:
        found = f"shape {tuple(sums.shape)}" if isinstance(sums, Tensor) else type(sums).__name__
        raise TaskError(f"sums of the task are {found}; expected a vector, shape (K,); use torch.stack")
    return sums
