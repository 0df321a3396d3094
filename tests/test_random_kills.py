"""200 kills of ranks at random moments: the real controller, real training, real SIGKILL; every job ends as if nothing had happened."""

import functools
import itertools

import pytest

from tests.support.recoveries import assert_undisturbed, kill_now_and_then, run_job

pytestmark = pytest.mark.ranks
KILLS_PER_JOB = 20
STEPS = 12
# A quarter of the kills waits until all are at work again, however slow the machine; others may fall into the recovery from the one before.
PAUSES_S = ((0.0, 0.2), (0.2, 0.6))
SHARE_AT_WORK = 0.25
TIMEOUT_S = 600.0
KINDS = {
    "three ranks": ({}, 80),
    "accumulated gradients": ({"accumulate": 2, "resources": {"workers": 2}}, 60),
    "averaged model": ({"average": {"kind": "ema"}, "recalibrate": "off", "resources": {"workers": 2}}, 60),
}
"""What is different about the job, and how many ranks are killed."""


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_die_at_random_moments(tmp_path, kind):
    """Wherever SIGKILL falls, parameters, statistics and everything on record are those of the undisturbed job, bit for bit."""
    change, num_kills = KINDS[kind]
    change = change | {"steps": STEPS, "retries": {"recoveries": 1000, "restarts": 1000}}
    expected = _run(tmp_path / "undisturbed", change)
    killed: list[int] = []
    num_recoveries = 0
    for seed in itertools.count(1):
        until = min(len(killed) + KILLS_PER_JOB, num_kills)
        disturb = functools.partial(
            kill_now_and_then, seed=seed, number=until, pauses_s=PAUSES_S, share_at_work=SHARE_AT_WORK, killed=killed
        )
        left = _run(tmp_path / str(seed), change, disturb)
        assert_undisturbed(left, expected, is_restart_possible=True)
        num_recoveries += len(left.recoveries())
        if len(killed) == num_kills:
            break

    assert set(killed) == set(range(expected.job.world_size))
    # One recovery may replace several, and all at once are no recovery but a restart.
    assert num_recoveries >= num_kills // 4


def test_there_are_200_of_them():
    """As many as are promised."""
    assert sum(num_kills for _, num_kills in KINDS.values()) == 200


def _run(folder, change, disturb=None):
    folder.mkdir()
    return run_job(folder, disturb=disturb, timeout_s=TIMEOUT_S, **change)
