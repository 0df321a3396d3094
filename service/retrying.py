"""What the ends of single ranks mean for the attempt, and what follows it. Pure: plain values in, a decision out.

A mistake of the user ends the job, wherever it shows. A rank that is lost to a fault of the system is replaced while another one still
holds the state of training; where none does, the job starts again from its last checkpoint. Each has a budget of its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from worker.contract import FailureCode, JobFailure

SETTLE_S = 10.0
"""How long a consequence waits for its cause: ranks that lost their peers, for one of them to be known dead."""
GATHER_S = 0.1
"""How long a lost rank waits for others to be lost with it, as those of one node are: they are replaced together."""
TORN_S = 1.0
"""How long a gang that was cut off while its ranks were told where to meet is looked at for dead ones."""
_FAULTS_OF_THE_SYSTEM = frozenset({FailureCode.PEER_LOST, FailureCode.RANK_LOST, FailureCode.SYSTEM_ERROR})


class RankEnd(BaseModel):
    """How one rank ended: its own last word (the data of its `end` event), `died` when its process is gone without one, or
    `stalled` when it holds up the others and is to be replaced as if it were.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Literal["succeeded", "paused", "stopped", "failed", "died", "stalled"]
    failure: JobFailure | None = None


@dataclass(frozen=True)
class Ranks:
    """What is known of the ranks of an attempt."""

    world_size: int
    ends: Mapping[int, RankEnd]
    """By rank, those that have ended."""
    parked: Collection[int] = ()
    """Those that lost their peers and wait to be told where to meet anew."""
    silent: Collection[int] = ()
    """Those that have not ended and cannot be reached now: dead or not, who knows."""
    is_torn: bool = False
    """Some were told of a new group and some not: whoever was telling them was cut off."""
    unsettled_s: float = 0.0
    """Seconds since the first of these was known."""


@dataclass(frozen=True)
class Budget:
    """How many recoveries a job has used, over all its attempts, of how many."""

    used: int
    limit: int


@dataclass(frozen=True)
class Wait:
    """Nothing to decide yet."""


@dataclass(frozen=True)
class Succeed:
    """Every step is done and the last checkpoint is published."""


@dataclass(frozen=True)
class Pause:
    """The checkpoint of the pause is published, or is not waited for any longer; every rank has ended or is to."""

    what: str = ""
    """Why it is not waited for, for people."""


@dataclass(frozen=True)
class Fail:
    """The job has failed for good."""

    failure: JobFailure


@dataclass(frozen=True)
class Replace:
    """Put new processes into the places of these ranks, and have all ranks meet anew. Without ranks, only the latter."""

    ranks: tuple[int, ...]
    what: str = ""
    """What is known of why, for people."""


class Why(StrEnum):
    """Why the number of ranks changes."""

    ASKED = "asked"
    ROOM_RETURNED = "room_returned"
    NODE_LOST = "node_lost"


@dataclass(frozen=True)
class Resize:
    """Go on with another number of ranks."""

    workers: int
    why: Why


@dataclass(frozen=True)
class Restart:
    """No rank holds the state of training any more: form a new gang from the last checkpoint."""

    message: str


@dataclass(frozen=True)
class Cancel:
    """The user asked for the end."""


Verdict = Wait | Succeed | Pause | Fail | Replace | Resize | Restart | Cancel


def judge(ranks: Ranks, recoveries: Budget, restarts: Budget) -> Verdict:
    """Decide what is known of the ranks means.

    Args:
        ranks: who has ended, and who is parked.
        recoveries: replacements of ranks.
        restarts: of the whole gang.
    """
    ends = ranks.ends
    outcomes = {end.outcome for end in ends.values()}
    if outcomes & {"succeeded", "paused"}:
        # Every rank stays until the last checkpoint is published, so whoever ended well says so for all. The others are heard out.
        is_heard = len(set(ends) | set(ranks.parked)) == ranks.world_size or ranks.unsettled_s > SETTLE_S
        return (Succeed() if "succeeded" in outcomes else Pause()) if is_heard else Wait()
    causes = [end.failure for _, end in sorted(ends.items()) if end.failure is not None]
    mistakes = [cause for cause in causes if cause.code not in _FAULTS_OF_THE_SYSTEM]
    if mistakes:
        return Fail(mistakes[0])
    return _after_losses(ranks, causes, recoveries, restarts)


def _after_losses(ranks: Ranks, causes: list[JobFailure], recoveries: Budget, restarts: Budget) -> Verdict:
    """Decide what follows where nobody ended well and nobody made a mistake."""
    ends = ranks.ends
    if any(end.outcome == "stopped" for end in ends.values()):
        return Fail(_nobody_asked(ends)) if ranks.unsettled_s > SETTLE_S else Wait()
    if len(ends) == ranks.world_size or any(cause.code is FailureCode.RANK_LOST for cause in causes):
        faults = [cause for cause in causes if cause.code is FailureCode.SYSTEM_ERROR]
        return Fail(faults[0]) if faults else after_gang_lost(restarts)
    if ends:
        return _replace(sorted(ends), recoveries) if ranks.unsettled_s >= GATHER_S else Wait()
    if ranks.silent:
        return Wait()  # nothing can be told to a rank that is not reached: its cluster will say whether it is dead
    if (ranks.is_torn and ranks.unsettled_s > TORN_S) or (ranks.parked and ranks.unsettled_s > SETTLE_S):
        return _replace([], recoveries)
    return Wait()


def _replace(lost: list[int], recoveries: Budget) -> Replace | Fail:
    if recoveries.used < recoveries.limit:
        return Replace(tuple(lost))
    return Fail(rank_lost(lost, recoveries))


def explained(verdict: Verdict, stalled: Mapping[int, str]) -> Verdict:
    """Return the verdict with what is known of the ranks that were ended because they held up the job."""
    if not stalled:
        return verdict
    what = "; ".join(text for _, text in sorted(stalled.items()))
    match verdict:
        case Replace(ranks):
            return Replace(ranks, "; ".join(stalled[rank] for rank in ranks if rank in stalled))
        case Restart(message):
            return Restart(f"{what}; {message}")
        case Fail(failure) if failure.code is FailureCode.RANK_LOST:
            return Fail(failure.model_copy(update={"message": f"{what}; {failure.message}"}))
    return verdict


def after_parting(places: str, *, is_again: bool, recoveries: Budget) -> Replace | Fail:
    """Decide what follows where all ranks wait for each other in different places.

    Args:
        places: where, for people.
        is_again: the same step was tried before, and came to the same. The network may fail once; code does so again.
        recoveries: replacements of ranks.
    """
    if is_again or recoveries.used >= recoveries.limit:
        message = (
            f"the ranks wait for each other in different places: {places}; expected every rank to take part in the same layers and"
            " collectives in the same order; see what depends on the rank or on its samples, and run it under syncbn.order_checks"
        )
        return Fail(JobFailure(code=FailureCode.TASK_ERROR, message=message))
    return Replace((), places)


def timed_out(running_s: float, timeout_s: float) -> Fail | Wait:
    """Decide whether a job has run for too long; queueing does not count."""
    if running_s <= timeout_s:
        return Wait()
    message = f"ran for {running_s:.0f} s; expected at most timeout_s {timeout_s:g}; raise timeout_s and start from its last checkpoint"
    return Fail(JobFailure(code=FailureCode.TIMEOUT, message=message))


def after_gang_lost(restarts: Budget) -> Restart | Fail:
    """Decide what follows when not one rank holds the state, as after a restart of the machine or of Ray."""
    if restarts.used < restarts.limit:
        return Restart(f"every rank was gone; restart {restarts.used + 1} of {restarts.limit} from the last checkpoint")
    message = (
        f"every rank was gone, and all {restarts.limit} restarts are used; raise retries.restarts and fork the job from its last checkpoint"
    )
    return Fail(JobFailure(code=FailureCode.RANK_LOST, message=message, retryable=True))


def rank_lost(ranks: list[int], recoveries: Budget) -> JobFailure:
    """Name the ranks that are lost and cannot be replaced."""
    names = named(ranks)
    verb = "is" if len(ranks) == 1 else "are"
    message = (
        f"{names} {verb} lost: the process ended without a word (killed, or out of memory), and all {recoveries.limit} recoveries are used;"
        f" see the logs of {names}, or raise retries.recoveries"
    )
    return JobFailure(code=FailureCode.RANK_LOST, message=message, rank=ranks[0] if ranks else None, retryable=True)


def named(ranks: Collection[int]) -> str:
    """Return the ranks in words.

    >>> named([1]), named([0, 2]), named([])
    ('rank 1', 'ranks 0, 2', 'no rank')
    """
    names = ", ".join(str(rank) for rank in sorted(ranks))
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}" if ranks else "no rank"


def _nobody_asked(ends: Mapping[int, RankEnd]) -> JobFailure:
    seen = "; ".join(f"rank {rank}: {end.failure.message if end.failure else end.outcome}" for rank, end in sorted(ends.items()))
    message = f"ranks stopped though nobody asked them to ({seen}); expected them to train; see their logs"
    return JobFailure(code=FailureCode.PEER_LOST, message=message, rank=min(ends), retryable=True)
