"""The states of a job and which may follow which. Pure: decides nothing about when.

queued -> starting -> running -> succeeded | failed | cancelled
running <-> recovering      queued, any live state -> pausing -> paused -> queued      any live state -> cancelling -> cancelled
pausing -> pausing, paused -> paused: a user asks for the rest of a job that was only to make room, and it stays
"""

from enum import StrEnum


class State(StrEnum):
    """Where a job is in its life. A terminal state is reached only when every process of the job is gone."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
"""Nothing follows these."""

HOLDS_GANG = frozenset({State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING, State.CANCELLING})
"""In these a job may have processes on the cluster."""

ALLOWED: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.PAUSING, State.SUCCEEDED, State.FAILED, State.CANCELLING, State.QUEUED}),
    State.RUNNING: frozenset({State.RECOVERING, State.PAUSING, State.SUCCEEDED, State.FAILED, State.CANCELLING, State.QUEUED}),
    State.RECOVERING: frozenset({State.RUNNING, State.PAUSING, State.SUCCEEDED, State.FAILED, State.CANCELLING, State.QUEUED}),
    State.PAUSING: frozenset({State.PAUSING, State.PAUSED, State.SUCCEEDED, State.FAILED, State.CANCELLING}),
    State.PAUSED: frozenset({State.PAUSED, State.QUEUED, State.CANCELLED}),
    State.CANCELLING: frozenset({State.CANCELLED, State.FAILED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def is_allowed(current: State, following: State) -> bool:
    """Return whether a job may go from one state to another.

    >>> is_allowed(State.QUEUED, State.STARTING), is_allowed(State.SUCCEEDED, State.RUNNING)
    (True, False)
    """
    return following in ALLOWED[current]
