"""Classification: cross-entropy and accuracy. Owns what is minimized and what is counted; not how."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sums:
    """Over the samples of a batch: the sum of the losses, with its gradient, and how many were predicted rightly."""

    loss: Tensor
    num_correct: Tensor


def measure(logits_NC: Tensor, labels_N: Tensor) -> Sums:
    """Compare predictions with labels: classes (N,), or shares of classes (N, C) as mixing makes them.

    An empty batch gives sums of 0, with a gradient of 0 for every parameter.
    """
    # Half precision has too few digits for a sum of losses.
    wide_NC = logits_NC.float() if logits_NC.dtype in {torch.float16, torch.bfloat16} else logits_NC
    targets = labels_N.to(wide_NC.dtype) if labels_N.is_floating_point() else labels_N
    loss = torch.nn.functional.cross_entropy(wide_NC, targets, reduction="sum")
    classes_N = labels_N.argmax(1) if labels_N.is_floating_point() else labels_N
    return Sums(loss, (logits_NC.argmax(1) == classes_N).sum())
