"""Tests of worker/tasks/segmentation.py, against formulas written out in loops."""

import pytest
import torch

from worker.contract.catalogue import SegmentationArgs
from worker.errors import TaskError
from worker.tasks.segmentation import Segmentation

C = 3


def _task(**args):
    return Segmentation(SegmentationArgs(**args), C)


def _batch(*spatial, ignored=False):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, C, *spatial, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, C, (2, *spatial), generator=generator)
    if ignored:
        labels[0].view(-1)[:4] = 255
    return logits, labels


def _expected(logits, labels, classes):
    """Cross-entropy and Dice loss of each sample, position by position."""
    entropies, dices = [], []
    for sample, label in zip(logits, labels, strict=True):
        scores, truth = sample.reshape(C, -1).T, label.reshape(-1)
        scores, truth = scores[truth != 255], truth[truth != 255]
        chances = scores.softmax(1)
        entropies.append(torch.stack([-chances[s, truth[s]].log() for s in range(len(truth))]).mean())
        dices.append(
            torch.stack([(2 * chances[truth == c, c].sum() + 1) / (chances[:, c].sum() + (truth == c).sum() + 1) for c in classes]).mean()
        )
    return torch.stack(entropies), 1 - torch.stack(dices)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 2)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_the_loss_of_each_sample_is_cross_entropy_plus_dice(spatial, ignored, background):
    """Of images and volumes, with and without positions of no class, with and without the background in Dice."""
    logits, labels = _batch(*spatial, ignored=ignored)
    entropy, dice = _expected(logits, labels, range(0 if background else 1, C))

    losses = _task(cross_entropy=0.5, dice=2.0, include_background=background).losses(logits, labels)
    torch.testing.assert_close(losses, 0.5 * entropy + 2 * dice)


def test_metrics_are_ratios_of_sums_over_all_batches():
    """Two halves give what the whole gives; IoU and Dice per class are those of all positions together."""
    logits, labels = _batch(6, 6, ignored=True)
    task = _task()
    halves = task.sums(logits[:1], labels[:1]) + task.sums(logits[1:], labels[1:])
    predicted, counted = logits.argmax(1), labels != 255

    found = task.metrics(halves.tolist(), 2)
    assert found == task.metrics(task.sums(logits, labels).tolist(), 2)
    for c in range(C):
        ours, theirs = (predicted == c) & counted, labels == c
        assert found[f"iou/{c}"] == pytest.approx(((ours & theirs).sum() / (ours | theirs).sum()).item())
        if c:
            assert found[f"dice/{c}"] == pytest.approx((2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())).item())
    assert found["miou"] == pytest.approx(sum(found[f"iou/{c}"] for c in range(C)) / C)
    assert found["dice"] == pytest.approx((found["dice/1"] + found["dice/2"]) / 2)
    assert found["accuracy"] == pytest.approx(((predicted == labels) & counted).sum().item() / counted.sum().item())


def test_a_class_that_is_nowhere_has_no_metric():
    """It is left out of the means instead of counting as 0 or as 1."""
    logits = torch.zeros(1, C, 2, 2)
    logits[:, 0] = 1
    found = _task().metrics(_task().sums(logits, torch.zeros(1, 2, 2, dtype=torch.int64)).tolist(), 1)

    assert found == {"accuracy": 1.0, "miou": 1.0, "iou/0": 1.0}


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 2)], ids=["2-D", "3-D"])
def test_an_empty_batch_is_zero_and_has_a_gradient(spatial):
    """A rank with an empty share goes through backward like the others."""
    logits = torch.zeros(0, C, *spatial, requires_grad=True)
    labels = torch.zeros(0, *spatial, dtype=torch.int64)
    torch.autograd.backward(_task().losses(logits, labels).sum())

    assert logits.grad is not None
    assert _task().sums(logits, labels).tolist() == [0] * (3 * C)
    assert _task().metrics([0.0] * (3 * C), 0) == {}


def test_coarse_logits_are_resized_to_the_labels():
    """Models that predict at a quarter of the size can be trained as they are."""
    logits, labels = _batch(2, 2)
    large = torch.nn.functional.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)

    torch.testing.assert_close(_task().losses(logits, labels), _task().losses(large, labels))


def test_half_precision_is_measured_in_float32():
    """The Dice sums of a volume do not fit into ten bits."""
    losses = _task().losses(torch.zeros(1, C, 64, 64, dtype=torch.float16), torch.zeros(1, 64, 64, dtype=torch.int64))

    assert losses.dtype is torch.float32


@pytest.mark.parametrize(("logits", "labels"), [((2, C), (2,)), ((2, C, 4, 4), (2,)), ((2, 5, 4, 4), (2, 4, 4))])
def test_what_does_not_fit_is_refused_with_its_shapes(logits, labels):
    """A classifier, labels of whole images, and another number of classes."""
    with pytest.raises(TaskError, match="use a segmentation model, and data with a label per position"):
        _task().losses(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))
