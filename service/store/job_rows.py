"""Jobs with their histories, as every request for one reads them: the statements, and what is made of the rows."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import ColumnElement, bindparam, exists, select

from service.states import State
from service.store.columns import instant
from service.store.query import Query, Row, Snapshot, stored
from service.store.records import Attempt, Job, Progress, Transition
from service.store.tables import attempts, job_labels, jobs, transitions

_NAMES: Final = tuple(jobs.c.keys())
_JSON: Final = ("labels", "metrics")
_INSTANTS: Final = ("created_at", "started_at", "finished_at", "running_since")
_JOB: Final = Query(select(*stored(jobs)).where(jobs.c.id == bindparam("id")))


async def read_job(snapshot: Snapshot, job_id: str) -> Job | None:
    """Return a job, or None where there is none of that id."""
    found = await snapshot.rows(_JOB, id=job_id)
    return _remembered_job(found[0]) if found else None


async def read_page(  # noqa: PLR0917 - called from one place
    snapshot: Snapshot,
    states: Sequence[str],
    labels: Sequence[tuple[str, str]],
    project: str | None,
    words: str,
    before: str | None,
    limit: int,
) -> list[Job]:
    """Return up to `limit` jobs, newest first, older than `before`: see JobFilter for the others."""
    query = _page(len(states), len(labels), has_project=project is not None, has_words=bool(words), is_first=before is None)
    values: dict[str, Any] = {f"state{number}": state for number, state in enumerate(states)}
    for number, (key, value) in enumerate(labels):
        values |= {f"key{number}": key, f"value{number}": value}
    values |= {} if project is None else {"project": project}
    values |= {"words": _escaped(words)} if words else {}
    values |= {} if before is None else {"before": before}
    return [_remembered_job(row) for row in await snapshot.rows(query, most=limit, **values)]


async def read_transitions(snapshot: Snapshot, job_ids: Sequence[str]) -> dict[str, list[Transition]]:
    """Return the transitions of each of the jobs, oldest first."""
    found: dict[str, list[Transition]] = {job_id: [] for job_id in job_ids}
    if not job_ids:
        return found
    for row in await snapshot.rows(_transitions(len(job_ids)), **_numbered(job_ids)):
        found[row[0]].append(_transition(row))
    return found


async def read_attempts(snapshot: Snapshot, job_ids: Sequence[str]) -> dict[str, list[Attempt]]:
    """Return the attempts of each of the jobs, oldest first."""
    found: dict[str, list[Attempt]] = {job_id: [] for job_id in job_ids}
    if not job_ids:
        return found
    for job_id, number, fence, reason, started, finished, world_size in await snapshot.rows(_attempts(len(job_ids)), **_numbered(job_ids)):
        found[job_id].append(Attempt(job_id, number, fence, reason, instant(started), instant(finished), world_size))
    return found


def job_of(row: Row) -> Job:
    """Return the job of a row of its table, as it is stored."""
    columns: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    del columns["log_bytes"]
    for name in _JSON:
        columns[name] = from_json(columns[name])
    for name in _INSTANTS:
        columns[name] = instant(columns[name])
    state, progress = State(columns.pop("state")), Progress(**from_json(columns.pop("progress")))
    return Job(state=state, progress=progress, spec_json=columns.pop("spec"), **columns)


# The same jobs are asked for again and again, and change rarely: a row that is the same is the same job, which nobody may change.
_remembered_job = lru_cache(256)(job_of)


@lru_cache(2048)
def _transition(row: Row) -> Transition:
    _, _, state, reason, message, at = row
    return Transition(State(state), reason, message, instant(at))


@lru_cache(128)
def _page(num_states: int, num_labels: int, *, has_project: bool, has_words: bool, is_first: bool) -> Query:
    # Ids first: out of an index that has all that is asked for, while whole rows would be read only to be sorted away.
    ids = select(jobs.c.id).order_by(jobs.c.id.desc()).limit(bindparam("most"))
    if not is_first:
        ids = ids.where(jobs.c.id < bindparam("before"))
    if has_project:
        ids = ids.where(jobs.c.project == bindparam("project"))
    if num_states:
        ids = ids.where(_is_one_of(jobs.c.state, "state", num_states))
    if has_words:
        ids = ids.where(jobs.c.name.icontains(bindparam("words"), escape="/") | jobs.c.id.icontains(bindparam("words"), escape="/"))
    for number in range(num_labels):
        is_it = (job_labels.c.key == bindparam(f"key{number}")) & (job_labels.c.value == bindparam(f"value{number}"))
        ids = ids.where(exists().where((job_labels.c.job_id == jobs.c.id) & is_it))
    return Query(select(*stored(jobs)).where(jobs.c.id.in_(ids)).order_by(jobs.c.id.desc()))


@lru_cache(128)
def _transitions(num_jobs: int) -> Query:
    mine = _is_one_of(transitions.c.job_id, "id", num_jobs)
    return Query(select(*stored(transitions)).where(mine).order_by(transitions.c.job_id, transitions.c.number))


@lru_cache(128)
def _attempts(num_jobs: int) -> Query:
    mine = _is_one_of(attempts.c.job_id, "id", num_jobs)
    return Query(select(*stored(attempts)).where(mine).order_by(attempts.c.job_id, attempts.c.number))


def _is_one_of(column: ColumnElement[str], name: str, number: int) -> ColumnElement[bool]:
    return column.in_([bindparam(f"{name}{index}") for index in range(number)])


def _numbered(job_ids: Sequence[str]) -> dict[str, str]:
    return {f"id{number}": job_id for number, job_id in enumerate(job_ids)}


def _escaped(words: str) -> str:
    return words.replace("/", "//").replace("%", "/%").replace("_", "/_")
