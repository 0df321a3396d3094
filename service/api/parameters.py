"""The parameters that several routes share: ids in paths, cursors, limits. A malformed id is a thing that is not here: 404.

So is a job of another project: every route that takes a `JobId` is refused before it begins, and no route can forget to look.
"""

from typing import Annotated, Final

from fastapi import Depends, Path, Query, Request

from service import jobs as use_cases
from service.api.context import context_of, identity_of
from service.store.ids import JOB_ID_PATTERN
from service.store.records import Job

MAX_SEQ: Final = 2**63 - 1
MAX_STEP: Final = 2**62


async def _visible_job(job_id: Annotated[str, Path(pattern=JOB_ID_PATTERN, description="id of a job")], request: Request) -> Job:
    """Return a job that the token's project owns; any, for an admin."""
    identity, context = await identity_of(request), await context_of(request)
    job = await use_cases.find(context.store, job_id)
    if not identity.sees(job.project):
        raise use_cases.job_not_here(job_id)
    return job


VisibleJob = Annotated[Job, Depends(_visible_job)]
"""The job, as it was when the request came."""


async def _visible_id(job: VisibleJob) -> str:
    return job.id


JobId = Annotated[str, Depends(_visible_id)]
STEP_PATTERN: Final = r"^(latest|best|[0-9]{1,15})$"
Step = Annotated[str, Path(pattern=STEP_PATTERN, description="a step, `latest` or `best`")]
FileName = Annotated[str, Path(min_length=1, max_length=128, description="a name that the manifest lists, or manifest.json")]
AfterSeq = Annotated[int, Query(ge=0, le=MAX_SEQ, description="only what is newer than this `seq`")]
BeforeSeq = Annotated[
    int | None,
    Query(ge=1, le=MAX_SEQ, description="only what is older than this `seq`, and of that the newest; next_cursor is the next `before`"),
]
Contains = Annotated[
    str | None,
    Query(min_length=1, max_length=500, description="only lines that contain this text, in capitals or not; go on while has_more"),
]
EventLimit = Annotated[int, Query(ge=1, le=1000)]
RankFilter = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="only this rank")]
