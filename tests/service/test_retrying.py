"""Tests of service/retrying.py: a table of ends and what they mean."""

import pytest

from service.retrying import SETTLE_S, Fail, RankEnd, Restart, Succeed, Wait, after_gang_lost, judge, rank_lost, timed_out
from worker.contract import FailureCode, JobFailure

DONE = RankEnd(outcome="succeeded")
STOPPED = RankEnd(outcome="stopped")
DIED = RankEnd(outcome="died")
PEER = RankEnd(outcome="failed", failure=JobFailure(code=FailureCode.PEER_LOST, message="connection closed", rank=0, retryable=True))
MISTAKE = RankEnd(outcome="failed", failure=JobFailure(code=FailureCode.TASK_ERROR, message="user code raised", rank=1))
LATE = SETTLE_S + 1


@pytest.mark.parametrize(
    ("ends", "since_s", "expected"),
    [
        ({}, 0.0, Wait()),
        ({0: DONE}, 0.0, Wait()),  # the others are about to say so too
        ({0: DONE, 1: DONE}, 0.0, Succeed()),
        ({0: DONE, 1: DIED}, 0.0, Succeed()),  # rank 0 has published the last checkpoint
        ({0: DONE}, LATE, Succeed()),
        ({1: DONE}, LATE, Wait()),  # the writer is still writing
        ({1: MISTAKE}, 0.0, Fail(MISTAKE.failure)),
        ({0: PEER}, 0.0, Wait()),  # a consequence; its cause comes
        ({0: PEER, 1: MISTAKE}, 0.0, Fail(MISTAKE.failure)),
        ({0: PEER, 1: DIED}, 0.0, Fail(rank_lost([1]))),
        ({1: DIED}, 0.0, Fail(rank_lost([1]))),
        ({0: DIED, 1: DIED}, 0.0, Fail(rank_lost([0, 1]))),
    ],
)
def test_judge(ends, since_s, expected):
    """Each row: the ends seen, the seconds since the first, and the verdict."""
    assert judge(ends, 2, since_s) == expected


@pytest.mark.parametrize("ends", [{0: PEER}, {0: PEER, 1: PEER}, {0: STOPPED}])
def test_an_end_without_a_cause_fails_after_a_while(ends):
    """Nothing waits for ever for a cause that does not come."""
    verdict = judge(ends, 2, LATE)

    assert isinstance(verdict, Fail)
    assert verdict.failure.code is FailureCode.PEER_LOST


def test_a_lost_rank_is_named():
    """The operator reads which rank was lost."""
    assert rank_lost([1]).rank == 1
    assert rank_lost([1]).message.startswith("rank 1 is lost")


def test_restarts_have_a_budget():
    """A gang that is wholly gone is formed again as often as the spec allows."""
    assert isinstance(after_gang_lost(2, 3), Restart)
    assert isinstance(after_gang_lost(3, 3), Fail)


def test_timeout_counts_running_time_and_says_both_numbers():
    """The message has the time it ran and the time it was allowed."""
    assert timed_out(10, 10) == Wait()
    verdict = timed_out(11, 10)
    assert isinstance(verdict, Fail)
    assert "ran for 11 s; expected at most timeout_s 10" in verdict.failure.message
