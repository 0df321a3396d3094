"""Tests of worker/retention.py."""

import pytest

from tests.support.checkpoints import draft
from worker.contract.best import BestSpec
from worker.contract.manifest import best_step
from worker.contract.spec import CheckpointSpec
from worker.retention import steps_to_prune


def _manifests(*accuracies, unhealthy=()):
    return {
        step: draft(step, metrics={"val/accuracy": accuracy, "val/loss": -accuracy}, is_healthy=step not in unhealthy)
        for step, accuracy in enumerate(accuracies, 1)
    }


@pytest.mark.parametrize(
    ("accuracies", "unhealthy", "keep_last", "keep_best", "pruned"),
    [
        ([0.1, 0.2, 0.3], (), 3, "val/accuracy", []),
        ([0.1, 0.2, 0.3], (), 1, None, [1, 2]),
        ([0.9, 0.2, 0.3], (), 1, "val/accuracy", [2]),
        ([0.9, 0.2, 0.3], (), 1, "val/loss", [2]),
        ([0.9, 0.8, 0.3], (1,), 1, "val/accuracy", [1]),
        ([0.9, 0.9, 0.3], (), 1, "val/accuracy", [1]),
        ([0.9, 0.8, 0.3], (1, 2, 3), 1, "val/accuracy", [1, 2]),
        ([], (), 1, "val/accuracy", []),
    ],
)
def test_what_the_rule_deletes(accuracies, unhealthy, keep_last, keep_best, pruned):
    """The newest ones stay, and the best healthy one, the newest of equals."""
    spec = CheckpointSpec(keep_last=keep_last, keep_best=keep_best)

    assert steps_to_prune(_manifests(*accuracies, unhealthy=unhealthy), spec) == pruned


def test_what_is_pinned_stays_beside_the_newest():
    """Pinning an old one does not cost a new one."""
    spec = CheckpointSpec(keep_last=2, keep_best=None)

    assert steps_to_prune(_manifests(0.1, 0.2, 0.3, 0.4), spec, {1}) == [2]


def test_a_checkpoint_without_the_metric_is_not_the_best():
    """A value that was no number is not in the manifest, and cannot win."""
    manifests = {1: draft(1, metrics={}), 2: draft(2, metrics={"val/loss": 3.0})}

    assert best_step(manifests.values(), BestSpec(metric="val/loss", mode="min")) == 2
    assert best_step(manifests.values(), BestSpec(metric="val/accuracy", mode="max")) is None


@pytest.mark.parametrize(("metric", "best"), [("val/accuracy", 3), ("val/loss", 1), (None, None)])
def test_best_is_high_accuracy_or_low_loss_the_newest_of_equals(metric, best):
    """Worker and service share the rule, so what the one keeps is what the other shows."""
    figures = {1: (0.5, 1.0), 2: (0.9, 2.0), 3: (0.9, 3.0)}
    manifests = [draft(step, metrics={"val/accuracy": accuracy, "val/loss": loss}) for step, (accuracy, loss) in figures.items()]

    assert best_step(manifests, CheckpointSpec(keep_best=metric).keep_best) == best
