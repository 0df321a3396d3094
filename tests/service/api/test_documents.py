"""Tests of service/api/documents.py: the bytes that go out are what the documented shapes say, to the name and the order."""

import json
from dataclasses import replace
from datetime import UTC, datetime

from service.api.documents import job_json, page_json
from service.api.schemas import JobPage, JobShape
from service.jobs import JobView
from service.states import State
from service.store.records import Attempt, Job, Progress, Transition

AT = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
JOB = Job(
    id="job_01ARZ3NDEKTSV4RRFFQ69G5FAV", project="default", name='"digits" \u2028\n', state=State.RUNNING, reason="first", message="a \\ é",
    labels={"team": "vision"}, priority=-3, created_at=AT, started_at=AT, finished_at=None, progress=Progress(7, None, 0.5, 896),
    metrics={"train/loss": 1e-7, "val/accuracy": 1.0}, world_size=2, fence=4, attempt=1, last_seq=9, edition=3,
    spec_json='{"optimizer":{"lr":1e-05},"name":"né","code":null}',
)  # fmt: skip
VIEW = JobView(JOB, [Transition(State.QUEUED, "submitted", "", AT)], [Attempt(JOB.id, 1, 4, "first", AT, None, 2)])
QUIET = JobView(replace(JOB, labels={}, metrics={}, started_at=None), [], [])


def _shape(view):
    history = {"transitions": list(view.transitions), "attempts": list(view.attempts), "spec": view.job.document}
    return JobShape.model_validate(vars(view.job) | history)


def test_a_job_goes_out_as_documented():
    """Every field in its place, times and states written alike."""
    for view in (VIEW, QUIET):
        told, shape = json.loads(job_json(view)), json.loads(_shape(view).model_dump_json())
        assert told == shape
        assert list(told) == list(shape)
        assert [list(one) for name in ("transitions", "attempts") for one in told[name]] == [
            list(one) for name in ("transitions", "attempts") for one in shape[name]
        ]


def test_a_page_goes_out_as_documented():
    """Full, last and empty."""
    for views, cursor in (([VIEW, QUIET], JOB.id), ([VIEW], None), ([], None)):
        page = JobPage(data=[_shape(view) for view in views], has_more=cursor is not None, next_cursor=cursor)
        assert json.loads(page_json(views, cursor)) == json.loads(page.model_dump_json())


def test_a_figure_that_json_does_not_have_is_null():
    """A reader in another language reads it, too."""
    view = JobView(replace(JOB, metrics={"train/loss": float("nan")}), [], [])
    assert json.loads(job_json(view))["metrics"] == {"train/loss": None}
