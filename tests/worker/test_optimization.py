"""Tests of worker/optimization.py."""

import math
from itertools import pairwise

import pytest
import torch

from tests.support.jobs import small_spec
from worker.optimization import build_optimizer, learning_rate
from worker.sampler import Plan

PLAN = Plan(40, 4, 5, None)  # 50 steps


def _rates(**schedule):
    spec = small_spec(optimizer={"name": "sgd", "lr": 0.2}, schedule=schedule)
    return [learning_rate(spec, PLAN, step) for step in range(PLAN.total_steps)]


def test_constant():
    """The rate of the spec at every step."""
    assert set(_rates(name="constant")) == {0.2}


def test_warm_up_is_linear_and_reaches_the_rate():
    """Ten steps of warm-up in ten equal stairs, then the rate."""
    rates = _rates(name="constant", warmup_epochs=1)

    assert rates[:10] == pytest.approx([0.02 * step for step in range(1, 11)])
    assert set(rates[10:]) == {0.2}


def test_cosine_goes_down_to_zero():
    """Half a cosine over what the warm-up leaves."""
    rates = _rates(name="cosine", warmup_epochs=1)

    assert rates[10] == 0.2
    assert rates[30] == pytest.approx(0.1)
    assert rates[49] == pytest.approx(0.2 * (1 + math.cos(math.pi * 39 / 40)) / 2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_a_warm_up_longer_than_the_job():
    """The rate ends at its full value; nothing is divided by zero."""
    rates = _rates(name="cosine", warmup_epochs=9)

    assert rates[-1] == pytest.approx(0.2)


def test_the_rate_scales_with_the_batch_where_asked():
    """Four times the batch that lr was meant for has four times the rate, warm-up and cosine included."""
    plain = small_spec(batch_size=128, optimizer={"lr": 0.1}, schedule={"name": "cosine", "warmup_epochs": 1})
    scaled = small_spec(batch_size=128, optimizer={"lr": 0.1, "lr_batch_size": 32}, schedule={"name": "cosine", "warmup_epochs": 1})

    for step in range(PLAN.total_steps):
        assert learning_rate(scaled, PLAN, step) == pytest.approx(4 * learning_rate(plain, PLAN, step))


def test_optimizers_take_their_options():
    """What the spec says is what PyTorch gets."""
    model = torch.nn.Linear(2, 2)
    sgd = small_spec(optimizer={"name": "sgd", "lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True}).optimizer
    adamw = small_spec(optimizer={"name": "adamw", "lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.2}).optimizer

    built = build_optimizer(sgd, model)
    assert {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True}.items() <= built.defaults.items()
    built = build_optimizer(adamw, model)
    assert {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}.items() <= built.defaults.items()
