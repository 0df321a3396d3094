"""Which ranks hold up all others without being dead. Pure: what was last heard of each in, ranks out.

A gang is held up when every rank that answers has been in the same step for far longer than steps take. Whoever then does not answer
(stopped, or its machine hangs), or does something else than wait for the others (a deadlock, an endless loop), is the one. Where all
wait for each other, but in different places, they have parted ways. Where all wait in one place, or all do something else, nobody can be
named: then a step just takes long, or the collective's own time limit ends it. A rank that is alone is compared with its own past.
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
STILL_S = 4.0
"""How long a rank must have been seen in one place before it counts as waiting there for ever."""

ALONE_PATIENCE_S = 120.0
ALONE_USUAL_TIMES = 10.0
"""The same for the only rank of a gang: it has nobody to be compared with, and nobody who keeps the state when it is ended."""


@dataclass(frozen=True)
class Heard:
    """What was last heard of a rank."""

    ago_s: float
    reading: Reading | None
    """None: it was not in a step."""
    still_s: float = 0.0
    """How long it has been seen at the same line and layer."""


@dataclass(frozen=True)
class Sighting:
    """When a rank was last heard, where it was, and since when it has been seen there; times are monotonic seconds."""

    at: float
    reading: Reading | None
    since: float

    @classmethod
    def after(cls, last: "Sighting | None", reading: Reading | None, now: float) -> "Sighting":
        """Return what is known after a rank was heard again."""
        before = None if last is None else last.reading
        is_there_still = before is not None and reading is not None and _spot(before) == _spot(reading)
        return cls(now, reading, last.since if last is not None and is_there_still else now)

    def heard(self, now: float) -> Heard:
        """Return it as durations."""
        return Heard(now - self.at, self.reading, self.at - self.since)


def stalled(heard: Mapping[int, Heard], world_size: int) -> dict[int, str]:
    """Return the ranks that hold up the others, and for each what it does, for people.

    Args:
        heard: by rank.
        world_size: how many ranks there are; while one has never been heard, nobody is suspected.
    """
    if world_size == 1:
        return {rank: what for rank, one in heard.items() if (what := _alone(rank, one)) is not None}
    if len(heard) < world_size:
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


def parted(heard: Mapping[int, Heard], world_size: int) -> tuple[int, str] | None:
    """Return the step and where each rank waits, for people, where all wait for each other in collectives that are not the same.

    So it is after one has left out a layer, or where ranks do not agree whether to call something. None where it is not so.
    """
    readings = {
        rank: one.reading for rank, one in heard.items() if one.reading is not None and one.ago_s <= SILENT_S and one.still_s >= STILL_S
    }
    if world_size < 2 or len(readings) < world_size:
        return None
    if not all(reading.is_in_collective and _is_held_up(reading) for reading in readings.values()):
        return None
    if len({(reading.step, _place(reading)) for reading in readings.values()}) == 1:
        return None
    places = "; ".join(f"rank {rank} waits in {_place(reading)} of step {reading.step + 1}" for rank, reading in sorted(readings.items()))
    return min(reading.step for reading in readings.values()), places


def _alone(rank: int, one: Heard) -> str | None:
    reading = one.reading
    if reading is None or one.ago_s > SILENT_S or reading.is_excused:
        return None
    if reading.idle_s <= ALONE_PATIENCE_S + ALONE_USUAL_TIMES * reading.usual_s:
        return None
    return (
        f"rank {rank} is at {reading.where} for {reading.idle_s:.0f} s, in step {reading.step + 1}; of the last steps none took longer than"
        f" {reading.usual_s:.1f} s"
    )


def _place(reading: Reading) -> str:
    return f"layer {reading.layer} ({reading.where})" if reading.layer else reading.where


def _spot(reading: Reading) -> tuple[int, str, str]:
    return reading.step, reading.where, reading.layer


def _is_held_up(reading: Reading) -> bool:
    return reading.idle_s > PATIENCE_S + USUAL_TIMES * reading.usual_s


def _last(reading: Reading | None) -> str:
    return "" if reading is None else f", in step {reading.step + 1}, while the others wait"
