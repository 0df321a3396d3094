"""Tests of worker/recovery.py: a table of what ranks bring into a new group, and what they agree on."""

import pytest

from worker.errors import RankLostError
from worker.recovery import Decision, View, decide

NEW = View(is_new=True, was_reporter=False, has_state=False, step=0, saved=0)


def _at(step, saved=0, *, was_reporter=True):
    return View(is_new=False, was_reporter=was_reporter, has_state=True, step=step, saved=saved)


def _fresh(step=0):
    return View(is_new=True, was_reporter=False, has_state=True, step=step, saved=step)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        # The start: all have built the same model, nobody takes anything over.
        ([_fresh(), _fresh()], Decision(0, 0, frozenset(), is_saved=True, is_reporter_new=True)),
        # Resumed from a checkpoint, which was evaluated when it was made.
        ([_fresh(3), _fresh(3)], Decision(0, 3, frozenset(), is_saved=True, is_reporter_new=True)),
        # Rank 0 died before it was heard that training had begun: the new one starts afresh, and takes over what the other has.
        ([_fresh(), _at(2)], Decision(1, 2, frozenset({0}), is_saved=False, is_reporter_new=True)),
        # A rank died in step 6; nobody had completed it.
        ([_at(5), NEW, _at(5)], Decision(0, 5, frozenset({1}), is_saved=False, is_reporter_new=False)),
        # Some had completed it: theirs counts, the one that had not takes it over.
        ([_at(5), _at(6), NEW], Decision(1, 6, frozenset({0, 2}), is_saved=False, is_reporter_new=False)),
        # Rank 0 died: whoever takes its place reports and saves again.
        ([NEW, _at(6, 6), _at(6, 6)], Decision(1, 6, frozenset({0}), is_saved=False, is_reporter_new=True)),
        # Another rank died right after a checkpoint was handed over.
        ([_at(6, 6), _at(6, 6), NEW], Decision(0, 6, frozenset({2}), is_saved=True, is_reporter_new=False)),
        # One had not come to the end of the evaluation.
        ([_at(6, 6), _at(6, 3), NEW], Decision(0, 6, frozenset({2}), is_saved=False, is_reporter_new=False)),
        # One survivor.
        ([NEW, NEW, _at(9)], Decision(2, 9, frozenset({0, 1}), is_saved=False, is_reporter_new=True)),
        # Rank 0 died and nobody took its place: the next one is rank 0 now, and reports and saves what the dead one had in its hands.
        ([_at(6, 6, was_reporter=False), _at(6, 6, was_reporter=False)], Decision(0, 6, frozenset(), is_saved=False, is_reporter_new=True)),
        # Another rank joins in mid-training, and one does right after a checkpoint.
        ([_at(5), _at(5), NEW], Decision(0, 5, frozenset({2}), is_saved=False, is_reporter_new=False)),
        ([_at(6, 6), NEW], Decision(0, 6, frozenset({1}), is_saved=True, is_reporter_new=False)),
        # A meeting without a loss, after a connection broke.
        ([_at(5), _at(5)], Decision(0, 5, frozenset(), is_saved=False, is_reporter_new=False)),
    ],
)
def test_decide(views, expected):
    """Each row: the views in the order of ranks, and the decision."""
    assert decide(views) == expected


def test_without_any_state_there_is_nothing_to_go_on_from():
    """The message says what helps."""
    with pytest.raises(RankLostError, match="none of the 2 ranks holds any state; expected at least one; start from the last checkpoint"):
        decide([NEW, NEW])
