"""Recovery in place, as a user meets it: the real controller, real training, real SIGKILL; the result equal in every bit."""

import pytest

from tests.support.faults import MOMENTS
from tests.support.recoveries import STEPS, assert_undisturbed, run_job

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the job leaves behind when nothing happens."""
    return run_job(tmp_path_factory.mktemp("undisturbed"))


def test_nothing_happens(undisturbed):
    """The job that the others are compared with."""
    assert undisturbed.recoveries() == []
    assert_undisturbed(undisturbed, undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
def test_rank_0_dies(tmp_path, undisturbed, moment):
    """The rank that reports and writes is killed at a moment: the job ends as if nothing had happened."""
    left = run_job(tmp_path, [{"rank": 0, "moment": moment, "step": 4}])

    assert [data["ranks"] for data in left.recoveries()] == [[0]]
    assert_undisturbed(left, undisturbed)
