"""Rolls: the lowest and the highest point of every stretch of a metric series, so that a million points need not be read to be drawn.

Level 1 rolls up WIDTH steps, level 2 WIDTH stretches of level 1. A stretch is rolled up when the series has gone past its end; what comes
after the last one is read from the level below. Steps that are done again, after a restart, take the rolls that they are in along.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Select, delete, func, insert, select

from service.store.session import Session, Write
from service.store.tables import metric_points, metric_rolls

WIDTH: Final = 64
LEVELS: Final = (1, 2)
MOST_RAW: Final = 32
"""How many times the points that are wanted may be read at once, of a level, rather than going one level up."""

Point = tuple[int, float]
Steps = tuple[int, int]
EVERYTHING: Final = (0, 2**62)
_ENDS = (metric_rolls.c.low_step, metric_rolls.c.low, metric_rolls.c.high_step, metric_rolls.c.high)


async def last_steps(write: Write, job_id: str, names: Sequence[str]) -> dict[str, int]:
    """Return the last step of each of the series that has one."""
    mine = (metric_points.c.job_id == job_id) & metric_points.c.name.in_(names)
    query = select(metric_points.c.name, func.max(metric_points.c.step)).where(mine).group_by(metric_points.c.name)
    return {row[0]: row[1] for row in await write.connection.execute(query)}


async def roll(write: Write, job_id: str, name: str, steps: Sequence[int], last_before: int | None) -> None:
    """Bring the rolls of a series up to date with points that were just stored.

    Args:
        write: the transaction that stored them.
        job_id: the job.
        name: the series.
        steps: those of the new points.
        last_before: the series' last step before; None where it had none.
    """
    first, last = min(steps), max(steps)
    is_back = last_before is not None and first <= last_before
    if is_back:
        await _unroll(write, job_id, name, first)
    before = first if last_before is None else last_before
    for level in LEVELS:
        width = WIDTH**level
        if is_back or before // width < last // width:
            await _roll_level(write, job_id, name, level, (await _next_bucket(write, job_id, name, level), last // width))


async def read_series(session: Session, job_id: str, name: str, most: int, steps: Steps = EVERYTHING) -> list[Point]:
    """Return a series by step: whole where it is short, else the lowest and the highest point of every stretch, and both ends.

    Args:
        session: a transaction.
        job_id: the job.
        name: the series.
        most: about how many points are wanted; up to MOST_RAW times as many may be returned, never fewer where there are more.
        steps: only the points of these steps, the first and the last one included.
    """
    points = _points(job_id, name, steps)
    # One query each: SQLite finds either end by the index, both at once by reading everything.
    first = (await session.execute(points.order_by(metric_points.c.step).limit(1))).one_or_none()
    last = (await session.execute(points.order_by(metric_points.c.step.desc()).limit(1))).one_or_none()
    if first is None or last is None:
        return []
    level = next((level for level in (0, *LEVELS) if (last.step - first.step) // WIDTH**level <= MOST_RAW * most), LEVELS[-1])
    found = await _within(session, job_id, name, level, (steps[0], last.step))
    # An end may lie in the midst of a stretch, between its lowest and its highest.
    head = [] if found[0][0] == first.step else [(first.step, first.value)]
    tail = [] if found[-1][0] == last.step else [(last.step, last.value)]
    return [*head, *found, *tail]


async def _within(session: Session, job_id: str, name: str, level: int, steps: Steps) -> list[Point]:
    """Return what a level's rolls say of the steps; what they do not cover whole, before and after, from the level below."""
    first, last = steps
    if first > last:
        return []
    if level == 0:
        rows = await session.execute(_points(job_id, name, steps).order_by(metric_points.c.step))
        return [(step, value) for step, value in rows]
    width = WIDTH**level
    is_covered = metric_rolls.c.bucket.between(-(-first // width), (last + 1) // width - 1)
    query = select(*_ENDS, metric_rolls.c.bucket).where(_of(job_id, name, level) & is_covered).order_by(metric_rolls.c.bucket)
    rolls = (await session.execute(query)).all()
    if not rolls:
        return await _within(session, job_id, name, level - 1, steps)
    # Between two rolls there are no points where there is no roll.
    before = await _within(session, job_id, name, level - 1, (first, rolls[0].bucket * width - 1))
    after = await _within(session, job_id, name, level - 1, ((rolls[-1].bucket + 1) * width, last))
    return [*before, *(point for row in rolls for point in _extremes(row)), *after]


def _points(job_id: str, name: str, steps: Steps) -> Select[int, float]:
    mine = (metric_points.c.job_id == job_id) & (metric_points.c.name == name)
    return select(metric_points.c.step, metric_points.c.value).where(mine & metric_points.c.step.between(*steps))


def _extremes(row: Any) -> list[Point]:
    low, high = (row.low_step, row.low), (row.high_step, row.high)
    return [low] if low == high else sorted((low, high))


async def _unroll(write: Write, job_id: str, name: str, first: int) -> None:
    for level in LEVELS:
        gone = _of(job_id, name, level) & (metric_rolls.c.bucket >= first // WIDTH**level)
        await write.connection.execute(delete(metric_rolls).where(gone))


async def _next_bucket(write: Write, job_id: str, name: str, level: int) -> int:
    """Return the stretch after the last that is rolled up: rolls have no holes."""
    query = select(func.max(metric_rolls.c.bucket)).where(_of(job_id, name, level))
    last = (await write.connection.execute(query)).scalar_one()
    return 0 if last is None else last + 1


async def _roll_level(write: Write, job_id: str, name: str, level: int, buckets: tuple[int, int]) -> None:
    """Roll up the stretches from the first of `buckets` to before the second, out of the level below."""
    width = WIDTH**level
    rows = []
    points = await _below(write, job_id, name, level, (buckets[0] * width, buckets[1] * width))
    for bucket, members in groupby(points, key=lambda point: point[0] // width):
        stretch = list(members)
        (low_step, low), (high_step, high) = min(stretch, key=_value), max(stretch, key=_value)
        ends = {"low_step": low_step, "low": low, "high_step": high_step, "high": high}
        rows.append({"job_id": job_id, "name": name, "level": level, "bucket": bucket, **ends})
    if rows:
        await write.connection.execute(insert(metric_rolls), rows)


async def _below(write: Write, job_id: str, name: str, level: int, steps: tuple[int, int]) -> list[Point]:
    if level > 1:
        below = WIDTH ** (level - 1)
        query = select(*_ENDS).where(
            _of(job_id, name, level - 1) & (metric_rolls.c.bucket >= steps[0] // below) & (metric_rolls.c.bucket < steps[1] // below)
        )
        rows = (await write.connection.execute(query.order_by(metric_rolls.c.bucket))).all()
        return [point for low_step, low, high_step, high in rows for point in ((low_step, low), (high_step, high))]
    query_points = _points(job_id, name, (steps[0], steps[1] - 1)).order_by(metric_points.c.step)
    return [(step, value) for step, value in await write.connection.execute(query_points)]


def _of(job_id: str, name: str, level: int) -> Any:
    return (metric_rolls.c.job_id == job_id) & (metric_rolls.c.name == name) & (metric_rolls.c.level == level)


def _value(point: Point) -> float:
    return point[1]
