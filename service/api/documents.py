"""Jobs as the JSON of the API, made straight from what the store hands out: what `JobShape` documents, and a test holds it to that.

FastAPI would build the shapes, check them and turn them into plain values first, which costs more than to find the jobs. Specs are in the
store as JSON, and go out as they are.
"""

from collections.abc import Mapping, Sequence

from pydantic_core import to_json
from starlette.responses import Response

from service.jobs import JobView
from service.store.records import Attempt


def job_json(view: JobView) -> bytes:
    """Return a job."""
    job = view.job
    but_spec = {
        "id": job.id,
        "project": job.project,
        "name": job.name,
        "state": job.state,
        "reason": job.reason,
        "message": job.message,
        "labels": job.labels,
        "priority": job.priority,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "progress": vars(job.progress),
        "metrics": job.metrics,
        "world_size": job.world_size,
        "transitions": [vars(one) for one in view.transitions],
        "attempts": [_attempt(one) for one in view.attempts],
    }
    return b'%s,"spec":%s}' % (to_json(but_spec, inf_nan_mode="null")[:-1], job.spec_json.encode())


def page_json(views: Sequence[JobView], next_cursor: str | None) -> bytes:
    """Return a page of jobs; there are more where it has a cursor."""
    rest = to_json({"has_more": next_cursor is not None, "next_cursor": next_cursor})
    return b'{"data":[%s],%s' % (b",".join(map(job_json, views)), rest[1:])


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of JSON that is text already."""
    return Response(body, status, headers, "application/json")


def _attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "number": attempt.number,
        "reason": attempt.reason,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "world_size": attempt.world_size,
    }
