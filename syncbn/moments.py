"""Count, mean and centred sum of squares: the sufficient statistics of a batch, and how they add up over ranks.

Owns: the value type, its float64 vector for the wire, merging. Pure: no autograd, no communication, no kernels.

Legend: R ranks, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncbn.errors import EmptyBatchError


class Moments(NamedTuple):
    """Statistics of n values per channel; every field float64, possibly with leading dimensions (ranks).

    Invariants: n >= 0; M2 >= 0; where n is 0, mean and M2 are 0. The variance M2 / n is biased.
    """

    n: Tensor  # (), how many values each channel has
    mean: Tensor  # (C,)
    M2: Tensor  # (C,), sum of squared distances from the mean


def pack(moments: Moments) -> Tensor:
    """The vector that adds up over ranks.

        (n, n mean, M2 + n mean^2)

    Args:
        moments: n (...,), mean (..., C), M2 (..., C).
    Returns:
        (..., 2C + 1) float64. An empty batch packs to zeros, so that a rank without samples needs no special case.
    """
    n, mean_C, M2_C = moments
    sum_C = n.unsqueeze(-1) * mean_C
    return torch.cat((n.unsqueeze(-1), sum_C, torch.addcmul(M2_C, sum_C, mean_C)), dim=-1)


def unpack(vector: Tensor) -> Moments:
    """Moments from a (sum of) packed vectors.

        mean = sum / n        M2 = sum of squares - sum * mean, at least 0

    Args:
        vector: (2C + 1,) float64.
    Returns:
        Moments; zeros where n is 0.
    Accuracy: the subtraction loses (mean/std)^2 * 2e-16 of M2: 2e-8 at mean/std = 1e4 (tests/syncbn/test_moments.py).
    """
    C = (vector.shape[0] - 1) // 2
    n, sum_C, squares_C = vector[0], vector[1 : C + 1], vector[C + 1 :]
    mean_C = sum_C / n.clamp(min=1)
    return Moments(n, mean_C, torch.addcmul(squares_C, sum_C, mean_C, value=-1).clamp_(min=0))


def from_shifted(n: Tensor, origin_C: Tensor, sum_C: Tensor, squares_C: Tensor) -> Moments:
    """Moments from sums of t = x - origin, all float64.

    mean = origin + sum t / n        M2 = sum t^2 - (sum t)^2 / n, at least 0        (n: at least 1)
    """
    offset_C = sum_C / n
    return Moments(n, origin_C + offset_C, torch.addcmul(squares_C, sum_C, offset_C, value=-1).clamp_(min=0))


def merge(moments_RC: Moments) -> Moments:
    """Combine per-rank moments into those of the union of their samples.

        n = sum_r n_r        mean = sum_r n_r mean_r / n
        M2 = sum_r (M2_r + n_r mean_r^2) - n mean^2        (all in float64)

    Args:
        moments_RC: n (R,), mean (R, C), centred sum of squares M2 (R, C); a rank may have n = 0.
    Returns:
        n (), mean (C,), M2 (C,), float64, same device. The variance M2 / n is biased.
    Raises:
        EmptyBatchError: every n is 0.
    Accuracy: relative error of M2 at most 2e-8 at mean/std = 1e4 (tests/syncbn/test_moments.py).
    Source: Chan, Golub, LeVeque 1979, eq. 1.5. Deviation: summed, not merged pairwise, so that one all-reduce suffices.

    >>> import torch
    >>> two_ranks = Moments(torch.tensor([1.0, 3.0]), torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [6.0]]))
    >>> [t.tolist() for t in merge(two_ranks)]
    [4.0, [3.0], [18.0]]
    """
    merged = unpack(pack(Moments(*(t.double() for t in moments_RC))).sum(0))
    if merged.n.item() == 0:
        ranks = moments_RC.n.shape[0]
        raise EmptyBatchError(
            f"all {ranks} batches to merge are empty: expected at least one value per channel in one of them; feed samples"
        )
    return merged


def variance(moments: Moments, *, unbiased: bool) -> Tensor:
    """Variance per channel, float64: M2 / n (biased) or M2 / (n - 1) (unbiased); 0 where the divisor would be.

    >>> import torch
    >>> m = Moments(torch.tensor(4.0), torch.tensor([3.0]), torch.tensor([18.0]))
    >>> variance(m, unbiased=False).item(), variance(m, unbiased=True).item()
    (4.5, 6.0)
    """
    return moments.M2 / (moments.n - int(unbiased)).clamp(min=1)
