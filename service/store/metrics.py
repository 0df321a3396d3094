"""Metric series: one value for each (job, name, step). A step that is done again replaces its point."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select, update

from service.store.database import Database
from service.store.records import Progress
from service.store.rolls import EVERYTHING, Steps, last_steps, read_series, roll
from service.store.session import Write
from service.store.tables import jobs, metric_points
from service.store.upserts import upsert


class Metrics:
    """Queries about metric series."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def names(self, job_id: str) -> list[str]:
        """Return the names of a job's series, in order."""
        found: list[str] = []
        async with self._database.read() as connection:
            while True:
                # One look into the index for each name; asked for all at once, a database reads every point.
                rest = (metric_points.c.job_id == job_id) & (metric_points.c.name > (found[-1] if found else ""))
                name = (await connection.execute(select(func.min(metric_points.c.name)).where(rest))).scalar_one()
                if name is None:
                    return found
                found.append(name)

    async def last_steps(self, job_id: str) -> dict[str, int]:
        """Return, for each of a job's series, the last step that is on record."""
        mine = metric_points.c.job_id == job_id
        query = select(metric_points.c.name, func.max(metric_points.c.step)).where(mine).group_by(metric_points.c.name)
        async with self._database.read() as connection:
            return {name: int(step) for name, step in (await connection.execute(query))}

    async def points(self, job_id: str, name: str, most: int, steps: Steps = EVERYTHING) -> list[tuple[int, float]]:
        """Return a series as (step, value), by step: whole, or where it is much longer than `most` its lows and highs (`rolls`).

        Args:
            job_id: the job.
            name: the series.
            most: about how many points are wanted.
            steps: only the points of these steps, the first and the last one included.
        """
        async with self._database.read() as session:
            return await read_series(session, job_id, name, most, steps)


async def take_metrics(write: Write, job_id: str, batch: Sequence[dict[str, Any]]) -> None:
    """Store the data of metrics events, oldest first: the points, and the job's latest progress and values.

    Values that are no finite numbers are left out: a series that JSON cannot carry helps nobody, and the failure says it in words.
    """
    if not batch:
        return
    query = select(jobs.c.metrics).where(jobs.c.id == job_id)
    latest: dict[str, float] = (await write.connection.execute(query)).scalar_one()
    points: dict[tuple[str, int], float] = {}
    for data in batch:
        values = {name: float(value) for name, value in data.get("values", {}).items() if _is_number(value)}
        latest |= values
        points |= {(name, data["step"]): value for name, value in values.items()}
    rows = [{"job_id": job_id, "name": name, "step": step, "value": value} for (name, step), value in points.items()]
    names = sorted({name for name, _ in points})
    last_before = await last_steps(write, job_id, names)
    await upsert(write, metric_points, rows)
    for name in names:
        await roll(write, job_id, name, [step for one, step in points if one == name], last_before.get(name))
    last = batch[-1]
    progress = Progress(last["step"], last.get("total_steps"), last.get("epoch", 0.0), last.get("samples", 0))
    await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(metrics=latest, progress=asdict(progress)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
