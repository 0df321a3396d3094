"""Mixup: each sample of a global batch mixed with another one of it. Owns who is mixed with whom, and by how much.

Partners and share are a function of (seed, step): the rank that has a sample loads its partner itself, whichever rank has that one too.
Source: Zhang et al. 2018, one share for the whole batch, as in the authors' code.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.contract.transforms import Mixup
from worker.data.noise import bits, uniforms
from worker.data.split import Array, Indices
from worker.errors import DataError

PARTNER_LANE, SHARE_LANE = 1, 2
_NUM_TRIALS = 1024


@dataclass(frozen=True)
class Mixing:
    """The mixup of one job."""

    spec: Mixup
    seed: int
    num_classes: int

    def partners(self, batch: Indices, step: int) -> Indices:
        """Return the partner of every sample of a global batch: the batch in a random order. Some may be their own."""
        return batch[np.argsort(bits(self.seed, step, np.arange(len(batch)), PARTNER_LANE), kind="stable")]

    def share(self, step: int) -> float:
        """Return the share of the sample itself, Beta(alpha, alpha) distributed, at least as large as its partner's.

        Jöhnk 1964, in logarithms, so that small alphas do not underflow: u^(1/a) / (u^(1/a) + v^(1/a)), given that the sum is at most 1.
        Mixing with share s and partner j is mixing with 1 - s and partner the other way round: so the larger share loses nothing.
        """
        trials = np.arange(_NUM_TRIALS)
        log_u, log_v = (np.log(1 - uniforms(self.seed, step, trials, SHARE_LANE + lane)) / self.spec.alpha for lane in (0, 1))
        log_sum = np.logaddexp(log_u, log_v)
        accepted = np.flatnonzero(log_sum <= 0)
        share = math.exp(log_u[accepted[0]] - log_sum[accepted[0]]) if len(accepted) else 0.5
        return max(share, 1 - share)

    def mix(self, own: tuple[Array, Array], partner: tuple[Array, Array], share: float) -> tuple[Array, npt.NDArray[np.float32]]:
        """Return the mixed images, float32, and the shares of classes (n, K), float32.

        Raises:
            DataError: the targets are masks.
        """
        if own[1].ndim != 1:
            raise DataError(f"mixup was given masks {own[1].shape[1:]}; expected one label per sample; remove mixup from data.transforms")
        classes = np.eye(self.num_classes, dtype=np.float32)
        weights = np.float32(share), np.float32(1 - share)
        x, y = (a * weights[0] + b * weights[1] for a, b in ((own[0], partner[0]), (classes[own[1]], classes[partner[1]])))
        return x, y
