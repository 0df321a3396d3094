"""Which ranks hold up all others without being dead. Pure: what was last heard of each in, ranks out.

A gang is held up when every rank that answers has been in the same step for far longer than steps take. Whoever then does not answer
(stopped, or its machine hangs), or does something else than wait for the others (a deadlock, an endless loop), is the one. Where all
wait, or all do something else, nobody can be named: then a step just takes long, or the collective's own time limit ends it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.contract import Reading

PATIENCE_S = 20.0
"""How much longer than usual a step may take before anybody is suspected."""
USUAL_TIMES = 3.0
"""How many times as long as the longest of the last steps a step may take beyond that."""
SILENT_S = 17.0
"""How long a rank may be silent: more than a long poll and the patience for its answer."""


@dataclass(frozen=True)
class Heard:
    """What was last heard of a rank."""

    ago_s: float
    reading: Reading | None
    """None: it was not in a step."""


def stalled(heard: Mapping[int, Heard], world_size: int) -> dict[int, str]:
    """Return the ranks that hold up the others, and for each what it does, for people.

    Args:
        heard: by rank.
        world_size: how many ranks there are; with one, or while one has never been heard, nobody is suspected.
    """
    if world_size < 2 or len(heard) < world_size:
        return {}
    answering = {rank: one for rank, one in heard.items() if one.ago_s <= SILENT_S}
    silent = sorted(set(heard) - set(answering))
    if not answering or not all(one.reading is not None and _is_held_up(one.reading) for one in answering.values()):
        return {}
    if silent:
        return {rank: f"rank {rank} has not answered for {heard[rank].ago_s:.0f} s{_last(heard[rank].reading)}" for rank in silent}
    busy = {rank: one.reading for rank, one in answering.items() if one.reading is not None and not one.reading.is_waiting}
    if len(busy) == world_size:
        return {}
    return {rank: f"rank {rank} is at {reading.where} for {reading.idle_s:.0f} s{_last(reading)}" for rank, reading in busy.items()}


def _is_held_up(reading: Reading) -> bool:
    return reading.idle_s > PATIENCE_S + USUAL_TIMES * reading.usual_s


def _last(reading: Reading | None) -> str:
    return "" if reading is None else f", in step {reading.step + 1}, while the others wait"
