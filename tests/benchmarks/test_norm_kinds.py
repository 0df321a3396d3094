"""The benchmark of kinds runs: every kind trains a step, and its table has what it says."""

from __future__ import annotations

import pytest

from tests.benchmarks.norm_kinds import OPTIONS, state, train


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_kind_trains(kind) -> None:
    """Two steps give an accuracy and a time."""
    accuracy, step_ms = train(0, 1, kind, 4, 2, 0)
    assert 0 <= accuracy <= 1
    assert step_ms > 0


def test_state_is_counted() -> None:
    """Weight and bias; running mean, running variance and a counter."""
    assert state("sync_bn") == "2C learned, 2C+1 kept"
    assert state("group_norm") == "2C learned, 0C kept"
    assert state("switchable") == "2C+6 learned, 2C+1 kept"
