"""Tests of worker/sampler.py."""

import numpy as np
import pytest

from worker.errors import DataError
from worker.sampler import Plan, Sampler, evaluation_batches, even_batches, permutation, shares


def _plan(num_samples=10, batch_size=4, epochs=3, steps=None):
    return Plan(num_samples, batch_size, epochs, steps)


def test_the_order_is_a_function_of_seed_and_epoch():
    """The first order of seed 0 is written down: a new version of numpy or of this code must not change it."""
    assert permutation(0, 0, 8).tolist() == permutation(0, 0, 8).tolist() == ORDER_OF_SEED_0
    assert sorted(permutation(3, 5, 1000)) == list(range(1000))
    assert len({tuple(permutation(seed, epoch, 20)) for seed in range(3) for epoch in range(3)}) == 9


ORDER_OF_SEED_0 = [0, 2, 1, 5, 4, 3, 6, 7]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_shares_of_all_ranks_together_are_the_global_batch(world_size, accumulate):
    """Whatever the world size, a step trains on the same samples, and micro-batch for micro-batch on the same ones together."""
    plan = _plan(num_samples=23, batch_size=7)
    lone = Sampler(plan, 1, 0, 1, accumulate)
    ranks = [Sampler(plan, 1, rank, world_size, accumulate) for rank in range(world_size)]

    for step in range(plan.total_steps):
        parts = [sampler.micro_batches(step) for sampler in ranks]
        together = [np.concatenate(of_ranks) for of_ranks in zip(*parts, strict=True)]
        assert [list(part) for part in together] == [list(part) for part in lone.micro_batches(step)]
        assert list(np.concatenate(together)) == list(lone.batch(step))


def test_an_epoch_takes_every_sample_once():
    """The batches of an epoch are the whole set, in the order of that epoch."""
    sampler = Sampler(_plan(), 7, 0, 1)

    for epoch in range(2):
        indices = np.concatenate([sampler.batch(step) for step in range(3 * epoch, 3 * epoch + 3)])
        assert list(indices) == list(permutation(7, epoch, 10))


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "steps_per_epoch", "samples_per_epoch"),
    [(8, 4, 2, 8), (9, 4, 2, 8), (10, 4, 3, 10), (3, 4, 1, 3), (3, 1, 3, 3), (2, 2, 1, 2)],
)
def test_a_last_batch_of_one_sample_is_left_out(num_samples, batch_size, steps_per_epoch, samples_per_epoch):
    """A single value per channel has no variance; with a batch size of one the user wanted it."""
    plan = _plan(num_samples, batch_size)

    assert (plan.steps_per_epoch, plan.samples_per_epoch) == (steps_per_epoch, samples_per_epoch)


def test_a_set_without_a_batch_is_refused():
    """The message says how many samples there are and how many are needed."""
    with pytest.raises(DataError, match="the training set has 1 samples; expected at least 2 for a batch_size of 4"):
        _plan(num_samples=1)


def test_no_micro_batch_has_one_sample():
    """Five samples and four accumulation steps make two micro-batches."""
    assert [len(part) for part in Sampler(_plan(5, 5), 0, 0, 1, 4).micro_batches(0)] == [3, 2]


def test_position_of_a_step():
    """Samples and epochs are counted exactly, across a shorter last batch."""
    plan = _plan()

    assert [plan.samples_after(step) for step in range(7)] == [0, 4, 8, 10, 14, 18, 20]
    assert [plan.epochs_after(step) for step in (0, 3, 6)] == [0, 1, 2]
    assert plan.total_steps == 9
    assert [step for step in range(10) if plan.is_checkpoint_due(step, 2)] == [6, 9]


def test_steps_win_over_epochs():
    """A job of so many steps ends in mid-epoch, with a checkpoint."""
    plan = _plan(epochs=None, steps=4)

    assert plan.total_steps == 4
    assert [step for step in range(5) if plan.is_checkpoint_due(step, 1)] == [3, 4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_takes_every_sample_once(world_size):
    """Over all ranks, no sample is missing and none is counted twice, though the ranks' shares differ."""
    seen = [index for rank in range(world_size) for batch in evaluation_batches(17, rank, world_size, 4) for index in batch]

    assert sorted(seen) == list(range(17))


def test_even_batches_and_shares():
    """Sizes differ by at most one and add up."""
    for count in range(30):
        for parts in range(1, 8):
            sizes = [part.stop - part.start for part in shares(count, parts)]
            assert sum(sizes) == count
            assert max(sizes) - min(sizes) <= 1
    assert all(batch.stop - batch.start > 1 for count in range(2, 50) for batch in even_batches(count, 4))
