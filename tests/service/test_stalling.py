"""Tests of service/stalling.py."""

import pytest

from service.stalling import ALONE_PATIENCE_S, PATIENCE_S, SILENT_S, STILL_S, Heard, parted, stalled
from worker.contract import Reading

LONG = PATIENCE_S + 4.0


def _heard(ago_s=1.0, idle_s=LONG, usual_s=1.0, *, is_waiting=True, where="a.py:1 in forward"):
    return Heard(ago_s, Reading(step=6, idle_s=idle_s, usual_s=usual_s, is_waiting=is_waiting, where=where))


BUSY = _heard(is_waiting=False, where="mine/model.py:12 in forward")
ALONE = _heard(idle_s=ALONE_PATIENCE_S + 40, is_waiting=False, where="mine/model.py:12 in forward")
EXCUSED = Heard(1.0, ALONE.reading.model_copy(update={"is_excused": True}))
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
    "alone, and not for long enough": ([BUSY], []),
    "alone, for far longer than ever": ([ALONE], [0]),
    "alone, where steps take long": ([_heard(idle_s=ALONE_PATIENCE_S + 40, usual_s=5.0, is_waiting=False)], []),
    "alone, in a backward pass that does not end": ([_heard(idle_s=ALONE_PATIENCE_S + 40)], [0]),
    "alone, while data are loaded or code is compiled": ([EXCUSED], []),
    "alone, between steps": ([Heard(1.0, None)], []),
    "alone and silent: nothing is known": ([Heard(SILENT_S + 1, ALONE.reading)], []),
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
    assert stalled({0: ALONE}, 1) == {
        0: "rank 0 is at mine/model.py:12 in forward for 160 s, in step 7; of the last steps none took longer than 1.0 s"
    }


def _in_collective(step=6, layer="bn1", still_s=STILL_S, idle_s=LONG, ago_s=1.0, *, is_in_collective=True):
    reading = Reading(
        step=step, idle_s=idle_s, usual_s=1.0, is_waiting=True, is_in_collective=is_in_collective, where="c.py:1 in sum", layer=layer
    )
    return Heard(ago_s, reading, still_s)


PARTED = {
    "in different layers": ([_in_collective(), _in_collective(layer="bn2")], True),
    "in different steps": ([_in_collective(), _in_collective(step=7)], True),
    "one outside of a layer": ([_in_collective(), _in_collective(layer="")], True),
    "all in the same place: the network, or a rank that is dead": ([_in_collective(), _in_collective()], False),
    "one has just come there": ([_in_collective(), _in_collective(layer="bn2", still_s=STILL_S / 2)], False),
    "one may be computing": ([_in_collective(), _in_collective(layer="bn2", is_in_collective=False)], False),
    "not for long": ([_in_collective(), _in_collective(layer="bn2", idle_s=1.0)], False),
    "one does not answer": ([_in_collective(), _in_collective(layer="bn2", ago_s=SILENT_S + 1)], False),
    "one is between steps": ([_in_collective(), Heard(1.0, None, 60.0)], False),
}


@pytest.mark.parametrize("case", PARTED)
def test_when_ranks_have_parted(case):
    """Only where each has been seen waiting in a place of its own for a while."""
    heard, is_parted = PARTED[case]

    assert (parted(dict(enumerate(heard)), 2) is not None) == is_parted


def test_the_places_are_named():
    """The layer where it is known, else the line; and the step where it began."""
    heard = {0: _in_collective(layer=""), 1: _in_collective(step=7, layer="layer1.0.bn2")}

    assert parted(heard, 2) == (6, "rank 0 waits in c.py:1 in sum of step 7; rank 1 waits in layer layer1.0.bn2 (c.py:1 in sum) of step 8")
    assert parted(heard, 3) is None
