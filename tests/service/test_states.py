"""Tests of service/states.py."""

from service.states import ALLOWED, HOLDS_GANG, TERMINAL, State, is_allowed


def test_nothing_follows_a_terminal_state():
    """What has ended stays ended."""
    assert all(not ALLOWED[state] for state in TERMINAL)


def test_every_state_has_its_row_and_can_be_reached():
    """No state is forgotten, none is unreachable."""
    assert set(ALLOWED) == set(State)
    assert {State.QUEUED}.union(*ALLOWED.values()) == set(State)


def test_every_live_state_can_be_cancelled():
    """A user can always end a job that has processes."""
    assert all(is_allowed(state, State.CANCELLING) for state in HOLDS_GANG - {State.CANCELLING})
