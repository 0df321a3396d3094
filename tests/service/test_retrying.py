"""Tests of service/retrying.py: a table of what is known of the ranks, and what follows."""

import pytest

from service.retrying import (
    GATHER_S,
    SETTLE_S,
    TORN_S,
    Budget,
    Fail,
    Pause,
    RankEnd,
    Ranks,
    Replace,
    Restart,
    Succeed,
    Wait,
    after_gang_lost,
    after_parting,
    explained,
    judge,
    rank_lost,
    timed_out,
)
from worker.contract import FailureCode, JobFailure

DONE = RankEnd(outcome="succeeded")
PAUSED = RankEnd(outcome="paused")
STOPPED = RankEnd(outcome="stopped")
DIED = RankEnd(outcome="died")


def _failed(code):
    return RankEnd(outcome="failed", failure=JobFailure(code=code, message=f"it was {code}", rank=1))


ALONE = _failed(FailureCode.PEER_LOST)  # parked until its patience was over
FAULT = _failed(FailureCode.SYSTEM_ERROR)
STATELESS = _failed(FailureCode.RANK_LOST)
MISTAKE = _failed(FailureCode.TASK_ERROR)
LATE = SETTLE_S + 1
RECOVERIES, RESTARTS = Budget(2, 10), Budget(0, 3)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (Ranks(2, {}), Wait()),
        # The end.
        (Ranks(2, {0: DONE}), Wait()),  # the other is about to say so too
        (Ranks(2, {0: DONE, 1: DONE}), Succeed()),
        (Ranks(2, {0: DONE, 1: DIED}), Succeed()),  # whoever ended well knows that the last checkpoint is published
        (Ranks(2, {0: DIED, 1: DONE}), Succeed()),
        (Ranks(2, {1: DONE}, parked={0}), Succeed()),
        (Ranks(2, {1: DONE}, unsettled_s=LATE), Succeed()),
        (Ranks(2, {0: PAUSED}), Wait()),
        (Ranks(2, {0: PAUSED, 1: PAUSED}), Pause()),
        # Mistakes of the user are never tried again.
        (Ranks(2, {1: MISTAKE}), Fail(MISTAKE.failure)),
        (Ranks(2, {1: MISTAKE}, parked={0}), Fail(MISTAKE.failure)),
        (Ranks(2, {0: DIED, 1: MISTAKE}), Fail(MISTAKE.failure)),
        (Ranks(2, {0: _failed(FailureCode.DIVERGED)}), Fail(_failed(FailureCode.DIVERGED).failure)),
        # Lost ranks are replaced while another one lives.
        (Ranks(2, {1: DIED}), Wait()),  # those of one node are lost together
        (Ranks(2, {1: DIED}, unsettled_s=GATHER_S), Replace((1,))),
        (Ranks(2, {1: DIED}, parked={0}, unsettled_s=GATHER_S), Replace((1,))),
        (Ranks(3, {0: DIED, 2: DIED}, unsettled_s=GATHER_S), Replace((0, 2))),
        (Ranks(2, {0: FAULT}, unsettled_s=GATHER_S), Replace((0,))),
        (Ranks(2, {0: ALONE}, unsettled_s=GATHER_S), Replace((0,))),
        # Nobody is known to be lost, yet they lost each other: they meet anew.
        (Ranks(2, {}, parked={0, 1}), Wait()),
        (Ranks(2, {}, parked={0}, unsettled_s=LATE), Replace(())),
        (Ranks(2, {}, parked={0}, silent={1}, unsettled_s=LATE), Wait()),  # dead or not, nobody knows yet
        (Ranks(2, {}, parked={0}, silent={1}, is_torn=True, unsettled_s=LATE), Wait()),
        (Ranks(2, {1: DIED}, parked={0}, unsettled_s=LATE), Replace((1,))),  # now somebody does
        (Ranks(2, {}, parked={0, 1}, unsettled_s=LATE), Replace(())),
        (Ranks(2, {}, is_torn=True), Wait()),
        (Ranks(2, {}, is_torn=True, unsettled_s=TORN_S + 0.1), Replace(())),
        # Nobody is left.
        (Ranks(2, {0: DIED, 1: DIED}), Restart("every rank was gone; restart 1 of 3 from the last checkpoint")),
        (Ranks(2, {0: ALONE, 1: DIED}), Restart("every rank was gone; restart 1 of 3 from the last checkpoint")),
        (Ranks(3, {0: STATELESS}), Restart("every rank was gone; restart 1 of 3 from the last checkpoint")),
        (Ranks(2, {0: FAULT, 1: FAULT}), Fail(FAULT.failure)),  # what befalls every rank alike befalls the next gang too
        (Ranks(2, {0: STOPPED}), Wait()),
    ],
)
def test_judge(ranks, expected):
    """Each row: what is known, and the verdict."""
    assert judge(ranks, RECOVERIES, RESTARTS) == expected


def test_recoveries_have_a_budget():
    """A rank that dies again and again fails the job by name, with the number of recoveries and what to do."""
    used_up = Budget(10, 10)
    verdict = judge(Ranks(2, {1: DIED}, unsettled_s=GATHER_S), used_up, RESTARTS)

    assert verdict == Fail(rank_lost([1], used_up))
    assert verdict.failure.rank == 1
    assert verdict.failure.message.startswith("rank 1 is lost")
    assert "all 10 recoveries are used" in verdict.failure.message
    assert "raise retries.recoveries" in verdict.failure.message


def test_ranks_that_stop_unasked_fail_after_a_while():
    """Nothing waits for ever for a cause that does not come."""
    verdict = judge(Ranks(2, {0: STOPPED}, unsettled_s=LATE), RECOVERIES, RESTARTS)

    assert isinstance(verdict, Fail)
    assert "nobody asked them to (rank 0: stopped)" in verdict.failure.message


def test_restarts_have_a_budget():
    """A gang that is wholly gone is formed again as often as the spec allows."""
    assert isinstance(after_gang_lost(Budget(2, 3)), Restart)
    assert isinstance(after_gang_lost(Budget(3, 3)), Fail)


def test_timeout_counts_running_time_and_says_both_numbers():
    """The message has the time it ran and the time it was allowed."""
    assert timed_out(10, 10) == Wait()
    verdict = timed_out(11, 10)
    assert isinstance(verdict, Fail)
    assert "ran for 11 s; expected at most timeout_s 10" in verdict.failure.message


def test_ranks_that_parted_meet_anew_once_and_within_the_budget():
    """An accident of the network does not come again in the same step; a mistake in the code does, and is named with the places."""
    assert after_parting("here; there", is_again=False, recoveries=Budget(0, 1)) == Replace((), "here; there")
    for verdict in (
        after_parting("here; there", is_again=True, recoveries=Budget(0, 1)),
        after_parting("here; there", is_again=False, recoveries=Budget(1, 1)),
    ):
        assert isinstance(verdict, Fail)
        assert verdict.failure.code is FailureCode.TASK_ERROR
        assert "different places: here; there; expected every rank" in verdict.failure.message


def test_who_held_up_the_job_is_said_with_what_follows():
    """In a recovery, a restart, and where the budget is used up; a mistake needs no such explanation."""
    stalled = {0: "rank 0 is at a.py:1", 2: "rank 2 has not answered"}
    mistake = Fail(JobFailure(code=FailureCode.TASK_ERROR, message="wrong shape"))

    assert explained(Replace((1, 2)), stalled) == Replace((1, 2), "rank 2 has not answered")
    assert explained(Restart("again"), stalled) == Restart("rank 0 is at a.py:1; rank 2 has not answered; again")
    assert explained(Fail(rank_lost([0], Budget(1, 1))), stalled).failure.message.startswith("rank 0 is at a.py:1; rank 2")
    assert explained(mistake, stalled) == mistake
    assert explained(Restart("again"), {}) == Restart("again")
