"""Segmentation in any number of dimensions: cross-entropy plus Dice, IoU and Dice per class. Owns what is minimized and counted.

Legend: N samples, C classes, S positions (pixels or voxels) of a sample.
"""

from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from worker.contract.catalogue import SegmentationArgs
from worker.errors import TaskError

SMOOTH = 1.0
"""Added to both sides of the fraction of the Dice loss, in positions: a class that is nowhere costs nothing where none is predicted."""

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


@final
class Segmentation:
    """One label per position.

        loss_n = a mean_s CE_ns + b (1 - mean_c dice_nc)        a = cross_entropy, b = dice
        dice_nc = (2 sum_s p_nsc t_nsc + 1) / (sum_s p_nsc + sum_s t_nsc + 1)        p softmax, t one-hot

    The Dice loss is that of each sample, averaged over the samples: so it is the same on any number of ranks without a reduction of its
    own, as one of the whole batch would need, and one of each rank's batch would not be. Class 0 is left out of it unless told otherwise.

    Source: Milletari et al. 2016, "V-Net"; sum and smoothing as in Isensee et al. 2021, "nnU-Net".
    """

    def __init__(self, args: SegmentationArgs, num_classes: int, class_names: tuple[str, ...] | None = None) -> None:
        self._args, self._num_classes = args, num_classes
        self._class_names = class_names or tuple(map(str, range(num_classes)))
        self._first_class = 0 if args.include_background else 1

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every sample (N,); logits (N, C, *spatial), labels (N, *spatial)."""
        scores_NCS, labels_NS = self._aligned(logits, labels)
        is_counted_NS = labels_NS != self._args.ignore_label
        safe_NS = torch.where(is_counted_NS, labels_NS, 0)
        counted_NS = is_counted_NS.to(scores_NCS.dtype)
        # Not nll_loss, which refuses volumes of an empty batch.
        log_NCS = scores_NCS.log_softmax(1)
        losses_N = scores_NCS.new_zeros(len(labels))
        if self._args.cross_entropy:
            entropy_NS = -log_NCS.gather(1, safe_NS.unsqueeze(1)).squeeze(1)
            losses_N = losses_N + self._args.cross_entropy * (entropy_NS * counted_NS).sum(1) / counted_NS.sum(1).clamp(min=1)
        if self._args.dice:
            losses_N = losses_N + self._args.dice * self._dice_losses(log_NCS, safe_NS, counted_NS)
        return losses_N

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return per class, one after the other: positions predicted and labelled so, predicted so, labelled so; (3 C,) float64."""
        scores_NCS, labels_NS = self._aligned(logits.detach(), labels)
        is_counted_NS = labels_NS != self._args.ignore_label
        labels_P, predicted_P = labels_NS[is_counted_NS], scores_NCS.argmax(1)[is_counted_NS]
        parts = (predicted_P[predicted_P == labels_P], predicted_P, labels_P)
        return torch.cat([torch.bincount(part, minlength=self._num_classes) for part in parts]).double()

    def metrics(self, sums: list[float], num_samples: int) -> dict[str, float]:
        """Return accuracy, miou, dice, and iou and dice per class; a class that is neither labelled nor predicted anywhere has none."""
        del num_samples
        hits, predicted, labelled = (sums[start:end] for start, end in pairwise(range(0, 4 * self._num_classes, self._num_classes)))
        seen = [c for c in range(self._num_classes) if predicted[c] + labelled[c] > 0]
        ious = {c: hits[c] / (predicted[c] + labelled[c] - hits[c]) for c in seen}
        dices = {c: 2 * hits[c] / (predicted[c] + labelled[c]) for c in seen if c >= self._first_class}
        found = {"accuracy": sum(hits) / sum(labelled)} if sum(labelled) else {}
        for name, mean, by_class in (("iou", "miou", ious), ("dice", "dice", dices)):
            if by_class:
                found[mean] = sum(by_class.values()) / len(by_class)
            found |= {f"{name}/{self._class_names[c]}": value for c, value in by_class.items()}
        return found

    def _dice_losses(self, log_NCS: Tensor, labels_NS: Tensor, counted_NS: Tensor) -> Tensor:
        chosen_NCS = log_NCS.exp() * counted_NS.unsqueeze(1)
        target_NCS = torch.zeros_like(chosen_NCS).scatter_(1, labels_NS.unsqueeze(1), counted_NS.unsqueeze(1))
        both_NC, all_NC = (chosen_NCS * target_NCS).sum(2), chosen_NCS.sum(2) + target_NCS.sum(2)
        dice_NC = (2 * both_NC + SMOOTH) / (all_NC + SMOOTH)
        return 1 - dice_NC[:, self._first_class :].mean(1)

    def _aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, C, S), wide enough for logarithms and resized to the labels' size, and labels (N, S)."""
        if labels.dim() < 2 or logits.dim() != labels.dim() + 1 or logits.shape[1] != self._num_classes:
            raise TaskError(
                f"segmentation got logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}; expected (N,"
                f" {self._num_classes}, *spatial) and (N, *spatial); use a segmentation model, and data with a label per position"
            )
        wide = logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits
        if wide.shape[2:] != labels.shape[1:]:
            wide = torch.nn.functional.interpolate(wide, labels.shape[1:], mode=_INTERPOLATION[labels.dim() - 1], align_corners=False)
        num_positions = labels.shape[1:].numel()
        return wide.reshape(len(labels), self._num_classes, num_positions), labels.reshape(len(labels), num_positions)
