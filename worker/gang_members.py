"""The ranks of a gang as whoever looks after it sees them: which process each is, what it is told, what it answers.

Owns the mapping of Ray's exceptions to what is known of a rank. Every wait is bounded; torch-free.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from worker.contract.assignment import Assignment
from worker.contract.events import Drain

ANSWER_TIMEOUT_S = 10.0
"""How long a live actor may take to answer a call that does no work."""

PREPARE_TIMEOUT_S = 600.0
"""How long new processes may take to build data and model while the others train on; these then wait for the rest of it."""
LOOK_S = 0.2
"""How often it is looked whether new processes are still wanted."""
GIVEN_UP = "nobody wants the new processes any more"


class GangError(RuntimeError):
    """A gang could not be formed, reached or dissolved. System fault; trying again may help."""


class NoRoomError(GangError):
    """The cluster has no room for the whole gang."""


class RankDiedError(GangError):
    """The process of a rank is gone."""


class UnreachableError(GangError):
    """Ray does not answer, or the actor cannot be reached now. Nothing is known; never a reason to declare anything dead."""


class Process(NamedTuple):
    """Where a process runs."""

    node_id: str
    pid: int
    created: float
    """Its start time; 0 where that is not known."""


@dataclass(frozen=True)
class Member:
    """One rank's actor and the process that it is."""

    place: int
    """Its number in the gang, as long as it lives: see `service.places`."""
    handle: Any
    pid: int
    created: float
    """Start time of the process, seconds since the epoch: tells it from a later process with the same pid."""
    node_id: str
    node_ip: str
    generation: int
    """That of its newest assignment; 0 where it has been given none."""

    @property
    def process(self) -> Process:
        """Where its process runs."""
        return Process(self.node_id, self.pid, self.created)


def prepare(members: Sequence[Member], preview: Callable[[int, str, int], Assignment], is_given_up: Callable[[], bool]) -> None:
    """Have new processes build data and model for a group that is to be; return when they have, have failed, or after PREPARE_TIMEOUT_S.

    Args:
        members: the new processes.
        preview: makes the assignment of a place, for which it is not known yet where the ranks meet.
        is_given_up: looked at while waiting.
    Raises:
        RankDiedError, UnreachableError: one is gone, or cannot be reached.
        NoRoomError: the wait was given up.
    """
    told = {member.place: preview(member.place, "", 0).model_dump(mode="json") for member in members}
    calls = {member.handle.prepare.remote(told[member.place], PREPARE_TIMEOUT_S): member.place for member in members}
    while calls and ray.wait(list(calls), num_returns=len(calls), timeout=LOOK_S)[1]:
        if is_given_up():
            raise NoRoomError(GIVEN_UP)
    for call, place in calls.items():
        answer(call, ANSWER_TIMEOUT_S, f"rank {place}")


def drain(member: Member, after_seq: int, timeout_s: float) -> "Future[Any]":
    """Ask a rank for its events after `after_seq`; the answer comes at once if there are some, else within `timeout_s`.

    Returns:
        A future whose result is the argument of `read_drain`, and whose exception that of `read_failure`.
    """
    future: Future[Any] = member.handle.drain.remote(after_seq, timeout_s).future()
    return future


def pause(members: Sequence[Member]) -> None:
    """Ask every rank to save after the present step, and to end. Does not wait, and does not mind a rank that is gone."""
    for member in members:
        member.handle.pause.remote()


def stop(members: Sequence[Member]) -> None:
    """Ask every rank to stop at the next step. Does not wait, and does not mind a rank that is gone."""
    for member in members:
        member.handle.stop.remote()


def read_drain(answered: Any) -> Drain:
    """Turn the result of a `drain` future into a Drain."""
    return Drain.model_validate(answered)


def read_failure(error: BaseException) -> GangError:
    """Map an exception of Ray to one of ours: the actor is known dead, or nothing is known."""
    if isinstance(error, GangError):
        return error
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return UnreachableError(f"the rank cannot be reached now: {error}")
    if isinstance(error, ray.exceptions.ActorDiedError):
        return RankDiedError(_first_line(error))
    return UnreachableError(f"Ray did not answer: {type(error).__name__}: {_first_line(error)}")


def identified(name: str, handle: Any, call: Any, timeout_s: float) -> Member:
    """Return an actor as a member, from its answer to `identify`.

    Raises:
        RankDiedError, UnreachableError, GangError: see `answer`.
    """
    return Member(handle=handle, **answer(call, timeout_s, name))


def answer(reference: Any, timeout_s: float, whom: str) -> Any:
    """Return what an actor or a task answers.

    Raises:
        RankDiedError: the actor is known dead.
        UnreachableError: it did not answer in time, or cannot be reached.
        GangError: it failed.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise UnreachableError(f"{whom} did not answer within {timeout_s:.0f} s") from error
    except ray.exceptions.RayActorError as error:
        raise read_failure(error) from error
    except ray.exceptions.RayTaskError as error:
        raise GangError(f"{whom} failed to start: {_first_line(error.cause or error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
