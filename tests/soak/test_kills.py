"""Tests of tests/soak/kills.py: a few kills each time, and that what it looks for would be seen."""

import pytest

from tests.soak.kills import run
from tests.support.actor_host import ActorHost
from tests.support.killing import _require_every_step

KILLS = 6
JOB = {"state": "succeeded", "spec": {"steps": 3}, "attempts": [{"number": 1}]}


def test_controllers_killed_at_random_moments_under_load_lose_nothing(tmp_path):
    """Jobs that are submitted, paused, cancelled, and lose ranks meanwhile end as they should, once."""
    report = run(tmp_path, KILLS, seed=2)

    assert report.kills >= KILLS
    assert sum(report.jobs.values()) > 0


def test_a_second_gang_of_a_job_is_seen(tmp_path):
    """The host of the ranks has it on record, also where two processes are one rank."""
    with ActorHost(tmp_path) as host:
        host.create("job_A/1/0/1", 0)
        host.create("job_A/1/1/1", 1)
        assert host.violations == []
        host.create("job_A/1/1/2", 1)
        host.create("job_A/2/0/1", 0)
        assert len(host.violations) == 1 + 3
        assert len(host.left("job_A")) == 4


def _said(step):
    where = {"attempt": 1, "rank": 0}
    return [where | {"type": "log", "data": {"message": str(step)}}, where | {"type": "metrics", "data": {"step": step}}]


@pytest.mark.parametrize("steps", [[1, 2], [1, 3], [1, 2, 2, 3]])
def test_a_lost_or_a_doubled_step_is_seen(steps):
    """On the record of a job of three steps."""
    _require_every_step(JOB, [event for step in (1, 2, 3) for event in _said(step)], [1, 2, 3])
    with pytest.raises(AssertionError):
        _require_every_step(JOB, [event for step in steps for event in _said(step)], [1, 2, 3])
