"""What a rank tells the controller: numbered events, fetched by long polls.

The data of each type:
    state       {phase, generation, step}            starting, training, evaluating, recalibrating, finishing, parked
    metrics     {step, total_steps, epoch, samples, values: {NAME: number}}
    log         {stream: stdout | stderr | log, level, message, num_dropped}      the last where it says how many lines are missing
    checkpoint  the manifest                         only after it is published
    pruned      {steps: [...]}                       checkpoints deleted by the retention rule
    telemetry   TelemetryRecord                      rank 0, now and then
    warning     {code, message, ...}                 bad_sample, loader_restarted, metric_not_finite, ...
    end         {outcome: succeeded | paused | stopped | failed, failure: JobFailure or null}       always the last one
Of the controller:
    recovery    {generation, ranks, step, used, budget, message}
    gap         {first_seq, last_seq, message}       the events of these numbers were dropped by the operator's retention
    resize      {generation, step, old_world_size, new_world_size, samples_per_rank: [most, least], why, message}
                why: asked, room_returned or node_lost
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.contract.frozen import Frozen


class EventType(StrEnum):
    """The kinds of event, of ranks and of the controller."""

    STATE = "state"
    METRICS = "metrics"
    LOG = "log"
    CHECKPOINT = "checkpoint"
    PRUNED = "pruned"
    RECOVERY = "recovery"
    RESIZE = "resize"
    TELEMETRY = "telemetry"
    WARNING = "warning"
    GAP = "gap"
    END = "end"


class RankEvent(Frozen):
    """One thing that happened on one rank. `seq` counts from 1 without gaps within (job, attempt, rank)."""

    seq: int
    at: datetime
    type: EventType
    data: dict[str, Any]


class Reading(Frozen):
    """Where a rank is in the midst of a step."""

    step: int
    """Counted from 0."""
    idle_s: float
    """Since the step began."""
    usual_s: float
    """The longest of the last steps that were completed."""
    is_waiting: bool
    """It waits for other ranks, or may: gradients are averaged beside the backward pass that computes them."""
    is_in_collective: bool = False
    """It does nothing else but wait for other ranks."""
    is_excused: bool = False
    """It is at something that has a time limit of its own, or may take minutes: data, compilation."""
    where: str
    """The line of Python that its training is at."""
    layer: str = ""
    """The layer of the model whose forward pass it is in, where that is known."""


class Drain(Frozen):
    """The answer to one long poll: events after the asked number, oldest first, and whether the rank has said its last word."""

    generation: int = 0
    """That of the group that the rank is in, or was in last; 0 before the first."""
    phase: str = ""
    """What it does now: the phase of its last `state` event."""

    reading: Reading | None = None
    """Where in a step it is; None between steps."""
    rank: int
    fence: int
    events: tuple[RankEvent, ...]
    is_ended: bool
