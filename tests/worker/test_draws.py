"""Tests of worker/draws.py."""

import torch

from worker.draws import Purpose, seed_draws


def _drawn(seed, purpose, step, rank):
    seed_draws(seed, purpose, step, rank)
    return torch.rand(8)


def test_a_step_done_again_draws_the_same_numbers():
    """Dropout drops the same, whatever was drawn in between."""
    first = _drawn(3, Purpose.STEP, 7, 1)
    torch.rand(5)

    assert torch.equal(_drawn(3, Purpose.STEP, 7, 1), first)


def test_every_seed_purpose_step_and_rank_draws_its_own():
    """Nothing is drawn twice where it should differ."""
    cases = [
        (3, Purpose.STEP, 7, 1),
        (4, Purpose.STEP, 7, 1),
        (3, Purpose.EVALUATION, 7, 1),
        (3, Purpose.STEP, 8, 1),
        (3, Purpose.STEP, 7, 2),
    ]

    assert len({tuple(_drawn(*case).tolist()) for case in cases}) == len(cases)
