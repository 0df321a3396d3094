"""Tests of service/scheduling.py in the long run: whole workloads on a cluster of numbers, with the invariants after every decision."""

import statistics
from datetime import timedelta

import pytest

from service.quotas import Policy
from service.scheduling import GRACE
from tests.support.simulation import Simulation, nodes, workload


def test_ten_thousand_jobs_on_a_thousand_gpus():
    """Nobody starves, nothing is over-committed, small jobs fill in, and a decision takes milliseconds."""
    simulation = Simulation(nodes(125), workload(10_000, seed=1, over=timedelta(hours=30)), Policy(), pace=timedelta(minutes=12))
    simulation.run()

    assert len(simulation.started) == 10_000
    assert simulation.longest_queue > 2_000
    assert simulation.backfilled > 1_000
    assert simulation.longest_reserved <= GRACE + timedelta(days=1)
    # Seconds of this thread, so that a busy machine does not count.
    assert statistics.median(simulation.decisions_s) < 0.05


@pytest.mark.parametrize(
    ("policy", "is_scattered"),
    [
        ({}, True),
        ({"preempt": True}, True),
        ({"quotas": [{"label": "team", "gpus": 64}, {"label": "team", "value": "a", "running_jobs": 4}]}, False),
        ({"quotas": [{"label": "team", "workers": 70}], "preempt": True}, True),
    ],
)
@pytest.mark.parametrize("seed", [2, 3])
def test_nobody_starves_whatever_the_policy_and_wherever_gangs_stand(policy, is_scattered, seed):
    """Every job ends, and the one in front never waits longer than was said."""
    jobs = workload(500, seed, over=timedelta(hours=20), most_workers=64)
    simulation = Simulation(nodes(14), jobs, Policy.model_validate(policy), is_scattered=is_scattered)
    simulation.run()

    assert len(simulation.started) == 500
    assert simulation.backfilled > 20
    assert bool(simulation.preempted) == policy.get("preempt", False)


def test_a_reservation_that_lets_everybody_by_is_found_out(monkeypatch):
    """The invariants can fail."""
    monkeypatch.setattr("service.reservation.Reservation.harmless", lambda _self, _bundle, _least, most: most)
    with pytest.raises(AssertionError, match="was put off"):
        Simulation(nodes(14), workload(500, 2, over=timedelta(hours=20), most_workers=64), Policy()).run()
