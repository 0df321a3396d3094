"""Tests of worker/contract/advice.py: what a valid spec had better not ask for."""

import pytest

from tests.support.jobs import small_spec
from worker.contract import advise


@pytest.mark.parametrize(
    ("spec", "together", "remedy"),
    [
        ({"batch_size": 15}, 15, "use a larger batch_size, or group_norm"),
        ({"batch_size": 64, "accumulate": 8}, 8, "use a smaller accumulate, a larger batch_size"),
        ({"batch_size": 32, "norm": {"kind": "batch_norm"}}, 8, "use norm.kind sync_bn with group_size all, a larger batch_size"),
        ({"batch_size": 32, "norm": {"kind": "ghost_bn"}}, 8, "use norm.kind sync_bn with group_size all, a larger batch_size"),
        ({"batch_size": 28, "norm": {"group_size": 2}}, 14, "use norm.kind sync_bn with group_size all, a larger batch_size"),
    ],
)
def test_few_samples_together_are_warned_of(spec, together, remedy):
    """Under 16, the statistics of BatchNorm are noisy; the warning says of how many samples, and what does better."""
    (problem,) = advise(small_spec(4, **spec))

    assert problem.value.endswith(f"over {together} samples together")
    assert "expected 16 samples or more" in str(problem)
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    "spec", [{"batch_size": 16}, {"batch_size": 64, "norm": {"kind": "batch_norm"}}, {"batch_size": 4, "norm": {"kind": "group_norm"}}]
)
def test_enough_samples_or_a_norm_of_single_ones_are_not(spec):
    """Sixteen are enough, and group_norm needs one."""
    assert advise(small_spec(4, **spec)) == ()


def test_statistics_that_change_with_every_resize_are_warned_of():
    """Each rank's own, over its share; those of sync_bn do not change, and with a fixed number nothing does."""
    elastic = {"batch_size": 64, "resources": {"workers": {"min": 2, "max": 4}}}

    (problem,) = advise(small_spec(4, **elastic, norm={"kind": "batch_norm"}))
    assert (problem.loc, problem.value) == ("norm.kind", "batch_norm on 2 to 4 workers")
    assert advise(small_spec(4, **elastic)) == ()


def test_frozen_statistics_must_come_from_somewhere():
    """A new model's are 0 and 1; those of a checkpoint, or of the user's own model, may be trained."""
    frozen = {"norm": {"kind": "frozen_bn"}, "batch_size": 2}
    (problem,) = advise(small_spec(1, **frozen))

    assert "set initialize_from to a checkpoint" in problem.remedy
    assert advise(small_spec(1, **frozen, initialize_from="job_" + "0" * 26 + "/checkpoints/best")) == ()
    assert advise(small_spec(1, **frozen, model={"name": "code:mine.models:pretrained"})) == ()
