"""Running statistics and their update, with torch's convention of momentum (the weight of the new batch).

Owns: how a batch moves the buffers. Does not own the buffers (the layer does) or the batch statistics (`moments.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncbn.moments import Moments, variance


def update_(running_mean_C: Tensor, running_var_C: Tensor, batch: Moments, momentum: float | Tensor, *, unbiased: bool) -> None:
    """Move the buffers towards the statistics of a batch, in place.

        running = (1 - f) running + f batch        f = momentum where n >= 2, else 0   (in float64, rounded once)

    Args:
        running_mean_C, running_var_C: buffers of any floating dtype; written in place, never rebound.
        batch: statistics over all ranks.
        momentum: weight of the new batch; a tensor for the cumulative average, so that nothing waits for the device.
        unbiased: enter M2 / (n - 1), as torch does, rather than M2 / n.
    Deviation: torch divides by 0 at n = 1 and stores NaN or raises; here fewer than two values leave the buffers as they are.
    """
    factor = (batch.n > 1).double() * momentum
    with torch.no_grad():
        for buffer, value_C in ((running_mean_C, batch.mean), (running_var_C, variance(batch, unbiased=unbiased))):
            buffer.copy_(torch.lerp(buffer.double(), value_C, factor))


def averaging_factor(momentum: float | None, num_batches_tracked: Tensor) -> float | Tensor:
    """Weight of the next batch: the momentum, or 1 / (number of batches with this one) for the cumulative average of momentum=None.

    >>> averaging_factor(0.1, torch.tensor(3))
    0.1
    >>> averaging_factor(None, torch.tensor(3)).item()
    0.25
    """
    return momentum if momentum is not None else (num_batches_tracked + 1).double().reciprocal()
