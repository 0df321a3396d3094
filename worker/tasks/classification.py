"""Classification: cross-entropy, accuracy, top-5 accuracy. Owns what is minimized and what is counted; not how.

Legend: N samples, C classes.
"""

from typing import final

import torch
from torch import Tensor

from worker.contract.catalogue import ClassificationArgs
from worker.errors import TaskError

TOP = 5


@final
class Classification:
    """One label per sample.

    Cross-entropy with targets smoothed as (1 - s) onehot + s / C. Top-5 accuracy is measured where there are more than five classes.
    """

    def __init__(self, args: ClassificationArgs, num_classes: int) -> None:
        self._smoothing = args.label_smoothing
        self._has_top = num_classes > TOP

    def losses(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        """Return the cross-entropies (N,). Labels are classes (N,), or shares of classes (N, C) as mixing makes them."""
        if labels_N.dim() > 1 and labels_N.shape != logits_NC.shape:
            raise TaskError(
                f"labels have shape {tuple(labels_N.shape)}; expected one class per sample, ({len(labels_N)},), for classification; use"
                " task segmentation for masks"
            )
        # Half precision has too few digits for logarithms.
        wide_NC = logits_NC.float() if logits_NC.dtype in {torch.float16, torch.bfloat16} else logits_NC
        targets = labels_N.to(wide_NC.dtype) if labels_N.is_floating_point() else labels_N
        return torch.nn.functional.cross_entropy(wide_NC, targets, reduction="none", label_smoothing=self._smoothing)

    def sums(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        """Return how many samples have the right class first and, with more than five classes, among the first five."""
        classes_N = labels_N.argmax(1) if labels_N.is_floating_point() else labels_N
        num_first = (logits_NC.argmax(1) == classes_N).sum()
        if not self._has_top:
            return num_first.unsqueeze(0)
        return torch.stack([num_first, (logits_NC.topk(TOP, 1).indices == classes_N.unsqueeze(1)).sum()])

    def metrics(self, sums: list[float], num_samples: int) -> dict[str, float]:
        """Return accuracy, and top5 where it was counted."""
        return {name: count / num_samples for name, count in zip(("accuracy", "top5"), sums, strict=False)}
