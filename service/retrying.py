"""What the ends of single ranks mean for the attempt, and what follows it. Pure: plain values in, a decision out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from worker.contract import FailureCode, JobFailure

SETTLE_S = 10.0
"""How long a failure that is only a consequence waits for its cause: a killed rank is known dead a little after its peers noticed."""


class RankEnd(BaseModel):
    """How one rank ended: its own last word (the data of its `end` event), or `died` when its process is gone without one."""

    model_config = ConfigDict(frozen=True)

    outcome: Literal["succeeded", "stopped", "failed", "died"]
    failure: JobFailure | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to decide yet."""


@dataclass(frozen=True)
class Succeed:
    """Every step is done and the last checkpoint is published."""


@dataclass(frozen=True)
class Fail:
    """The job has failed for good."""

    failure: JobFailure


@dataclass(frozen=True)
class Restart:
    """The whole gang is gone: form a new one from the last checkpoint."""

    message: str


@dataclass(frozen=True)
class Cancel:
    """The user asked for the end."""


Verdict = Wait | Succeed | Fail | Restart | Cancel


def judge(ends: Mapping[int, RankEnd], world_size: int, since_first_end_s: float) -> Verdict:
    """Decide what the ends seen so far mean.

    Args:
        ends: by rank, those that have ended.
        world_size: ranks of the attempt.
        since_first_end_s: seconds since the first of them ended.
    """
    # Rank 0 writes the last checkpoint; its success needs the collectives of every step, so nothing is missing whatever befell the others.
    if 0 in ends and ends[0].outcome == "succeeded" and (len(ends) == world_size or since_first_end_s > SETTLE_S):
        return Succeed()
    causes = [end.failure for _, end in sorted(ends.items()) if end.failure is not None and end.failure.code is not FailureCode.PEER_LOST]
    if causes:
        return Fail(causes[0])
    died = sorted(rank for rank, end in ends.items() if end.outcome == "died")
    if died and 0 in ends and ends[0].outcome == "succeeded":
        return Wait()
    if died:
        return Fail(rank_lost(died))
    if ends and since_first_end_s > SETTLE_S and any(end.outcome in {"failed", "stopped"} for end in ends.values()):
        return Fail(_no_cause(ends))
    return Wait()


def timed_out(running_s: float, timeout_s: float) -> Fail | Wait:
    """Decide whether a job has run for too long; queueing does not count."""
    if running_s <= timeout_s:
        return Wait()
    message = f"ran for {running_s:.0f} s; expected at most timeout_s {timeout_s:g}; raise timeout_s and start from its last checkpoint"
    return Fail(JobFailure(code=FailureCode.TIMEOUT, message=message))


def after_gang_lost(restarts: int, budget: int) -> Restart | Fail:
    """Decide what follows when not one rank of a gang is alive, as after a restart of the machine or of Ray."""
    if restarts < budget:
        return Restart(f"every rank was gone; restart {restarts + 1} of {budget} from the last checkpoint")
    message = f"every rank was gone, and all {budget} restarts are used; raise retries.restarts and fork the job from its last checkpoint"
    return Fail(JobFailure(code=FailureCode.RANK_LOST, message=message, retryable=True))


def rank_lost(ranks: list[int]) -> JobFailure:
    """Name the ranks whose processes are gone."""
    names = ", ".join(map(str, ranks))
    noun = "rank" if len(ranks) == 1 else "ranks"
    verb = "is" if len(ranks) == 1 else "are"
    message = f"{noun} {names} {verb} lost: the process ended without a word (killed, or out of memory); see the logs of {noun} {names}"
    return JobFailure(code=FailureCode.RANK_LOST, message=message, rank=ranks[0], retryable=True)


def _no_cause(ends: Mapping[int, RankEnd]) -> JobFailure:
    seen = "; ".join(f"rank {rank}: {end.failure.message if end.failure else end.outcome}" for rank, end in sorted(ends.items()))
    message = f"ranks lost their peers and none gave a cause within {SETTLE_S:.0f} s ({seen})"
    return JobFailure(code=FailureCode.PEER_LOST, message=message, rank=min(ends), retryable=True)
