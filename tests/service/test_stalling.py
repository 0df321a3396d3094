"""Tests of service/stalling.py."""

import pytest

from service.stalling import PATIENCE_S, SILENT_S, Heard, stalled
from worker.contract import Reading

LONG = PATIENCE_S + 4.0


def _heard(ago_s=1.0, idle_s=LONG, usual_s=1.0, *, is_waiting=True, where="a.py:1 in forward"):
    return Heard(ago_s, Reading(step=6, idle_s=idle_s, usual_s=usual_s, is_waiting=is_waiting, where=where))


BUSY = _heard(is_waiting=False, where="mine/model.py:12 in forward")
SILENT = _heard(ago_s=SILENT_S + 8)
CASES = {
    "nobody is held up": ([_heard(idle_s=1.0), _heard(idle_s=1.0)], []),
    "one is quick, so the gang moves": ([_heard(), _heard(idle_s=1.0)], []),
    "steps take long here": ([_heard(usual_s=60.0), BUSY], []),
    "one holds up the others": ([_heard(), BUSY, _heard()], [1]),
    "two do": ([BUSY, BUSY, _heard()], [0, 1]),
    "all wait: nobody can be named": ([_heard(), _heard()], []),
    "all are busy: a long step": ([BUSY, BUSY], []),
    "one is silent and the others wait": ([_heard(), SILENT], [1]),
    "one is silent and the others move on": ([_heard(idle_s=1.0), SILENT], []),
    "all are silent: it is the cluster that does not answer": ([SILENT, SILENT], []),
    "one is between steps": ([Heard(1.0, None), BUSY], []),
    "one was silent when it was between steps, and the others wait": ([_heard(), Heard(SILENT_S + 1, None)], [1]),
    "a gang of one": ([BUSY], []),
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_suspected(case):
    """Only who demonstrably holds up the others."""
    heard, suspects = CASES[case]

    assert list(stalled(dict(enumerate(heard)), len(heard))) == suspects


def test_while_a_rank_was_never_heard_nobody_is_suspected():
    """A controller that has just come knows nothing."""
    assert stalled({0: _heard(), 1: BUSY}, 3) == {}


def test_the_suspect_is_named_with_its_step_and_line():
    """Whoever reads the event knows where to look."""
    assert stalled({0: _heard(), 1: BUSY}, 2) == {1: "rank 1 is at mine/model.py:12 in forward for 24 s, in step 7, while the others wait"}
    assert stalled({0: _heard(), 1: SILENT}, 2) == {1: "rank 1 has not answered for 25 s, in step 7, while the others wait"}
