"""Routes of jobs: submit, list, get, edit, pause, resume, resize, cancel, delete."""

import hashlib
import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from service import jobs as use_cases
from service.admission import admit
from service.api.bodies import read_json, read_json_or_yaml
from service.api.context import READ, SUBMIT, Context, InContext, InIdentity
from service.api.documents import job_json, json_answer, page_json
from service.api.parameters import JobId, VisibleJob
from service.api.problems import problems_of
from service.api.schemas import DryRunShape, JobEdit, JobPage, JobShape, ResizeAsk
from service.errors import InvalidError
from service.jobs import JobView
from service.states import HOLDS_GANG, State
from service.store.ids import JOB_ID_PATTERN
from service.store.jobs import JobFilter
from service.store.records import IdempotencyClaim, Token
from worker.contract import Problem, advise, parse_spec

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$", description="chosen by the client: the same key is the same job"),
]
IfMatch = Annotated[str | None, Header(max_length=1000, description="the ETag of the job as it was read")]
StateFilter = Annotated[list[str], Query(description="only these states; repeated or separated by commas")]
LabelFilter = Annotated[list[str], Query(description="only with this label, KEY=VALUE; repeated: with all of them")]
Words = Annotated[str, Query(max_length=256, description="only jobs that have this in their name or id, in capitals or not")]
AfterJob = Annotated[str | None, Query(pattern=JOB_ID_PATTERN, description="the next_cursor of the page before")]
_STATES: Final = ", ".join(State)


@router.post("/jobs", status_code=201, response_model=JobShape, responses={200: {"model": DryRunShape | JobShape}}, dependencies=[SUBMIT])
async def submit_job(
    context: InContext,
    identity: InIdentity,
    *,
    document: Annotated[Any, Depends(read_json_or_yaml)],
    dry_run: Annotated[bool, Query(description="only validate, and answer with the resolved spec")] = False,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Submit a job. When the answer is there, the job is stored."""
    if dry_run:
        spec = parse_spec(document)
        await admit(context.store, spec, identity, context.settings.data_roots)
        await use_cases.check_references(context.artifacts, spec)
        return JSONResponse({"spec": spec.model_dump(mode="json"), "warnings": [str(problem) for problem in advise(spec)]})
    claim = None if idempotency_key is None else IdempotencyClaim(idempotency_key, fingerprint(document))
    return await stored(context, identity, document, claim)


async def stored(context: Context, identity: Token, document: Any, claim: IdempotencyClaim | None) -> Response:
    """Store the job that a document asks for, and answer with it; with the one of before, where the same was asked for before."""
    spec = parse_spec(document)
    await admit(context.store, spec, identity, context.settings.data_roots)
    quotas = context.policy.current().quotas
    owner = {"project": identity.project, "submitter": identity.name}
    view, is_new = await use_cases.submit(context.store, context.artifacts, spec, claim, quotas, **owner)
    replayed = {} if is_new else {"Idempotent-Replayed": "true"}
    return _shown(view, 201, Location=f"/v1/jobs/{view.job.id}", **replayed)


@router.get("/jobs", response_model=JobPage, dependencies=[READ])
async def list_jobs(
    context: InContext,
    identity: InIdentity,
    *,
    state: StateFilter = [],  # noqa: B006 - FastAPI copies it
    label: LabelFilter = [],  # noqa: B006 - FastAPI copies it
    search: Words = "",
    after: AfterJob = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """List jobs, newest first."""
    project = None if identity.is_admin else identity.project
    wanted = JobFilter(_states(state), _labels(label), project, search)
    found = await context.store.jobs.page(wanted, after, limit + 1)
    views = await use_cases.describe_all(context.store, found[:limit])
    return json_answer(page_json(views, found[limit - 1].id if len(found) > limit else None))


@router.get("/jobs/{job_id}", response_model=JobShape, dependencies=[READ])  # noqa: FAST003 - VisibleJob takes it
async def get_job(job: VisibleJob, context: InContext) -> Response:
    """Show a job."""
    return _shown(await use_cases.describe(context.store, job))


@router.patch("/jobs/{job_id}", response_model=JobShape, dependencies=[SUBMIT])
async def edit_job(job_id: JobId, context: InContext, document: Annotated[Any, Depends(read_json)], if_match: IfMatch = None) -> Response:
    """Change a job's priority or labels."""
    try:
        change = JobEdit.model_validate(document)
    except ValidationError as error:
        raise InvalidError.of(problems_of(error.errors())) from error
    view = await use_cases.edit(
        context.store,
        job_id,
        await _edition(context, job_id, if_match),
        priority=change.priority if "priority" in change.model_fields_set else None,
        labels=change.labels if "labels" in change.model_fields_set else None,
    )
    return _shown(view)


@router.post(
    "/jobs/{job_id}/cancel",
    response_model=JobShape,
    responses={202: {"model": JobShape, "description": "its processes are being ended"}},
    dependencies=[SUBMIT],
)
async def cancel_job(job_id: JobId, context: InContext) -> Response:
    """Have a job end as `cancelled`: at once where it has no processes yet (200), else when the last is gone (202)."""
    view = await use_cases.cancel(context.store, job_id)
    return _shown(view, 202 if view.job.state is State.CANCELLING else 200)


@router.post(
    "/jobs/{job_id}/pause",
    response_model=JobShape,
    responses={202: {"model": JobShape, "description": "its checkpoint is being written"}},
    dependencies=[SUBMIT],
)
async def pause_job(job_id: JobId, context: InContext) -> Response:
    """Have a job save and give its room back: `paused` at once where it has no processes (200), else after the present step (202)."""
    view = await use_cases.pause(context.store, job_id)
    return _shown(view, 202 if view.job.state is State.PAUSING else 200)


@router.post("/jobs/{job_id}/resume", response_model=JobShape, dependencies=[SUBMIT])
async def resume_job(job_id: JobId, context: InContext) -> Response:
    """Have a paused job queued again; it goes on from the step at which it was paused."""
    return _shown(await use_cases.resume(context.store, job_id))


@router.post(
    "/jobs/{job_id}/resize",
    response_model=JobShape,
    responses={202: {"model": JobShape, "description": "it trains, and gets another number of workers as soon as that can be"}},
    dependencies=[SUBMIT],
)
async def resize_job(job_id: JobId, context: InContext, document: Annotated[Any, Depends(read_json)]) -> Response:
    """Ask for another number of workers. 200 where it has as many, or will start with them; 202 while it trains with others."""
    try:
        ask = ResizeAsk.model_validate(document)
    except ValidationError as error:
        raise InvalidError.of(problems_of(error.errors())) from error
    view = await use_cases.resize(context.store, job_id, ask.workers)
    return _shown(view, 202 if view.job.state in HOLDS_GANG and view.job.world_size != ask.workers else 200)


@router.delete("/jobs/{job_id}", status_code=204, dependencies=[SUBMIT])
async def delete_job(job_id: JobId, context: InContext) -> Response:
    """Delete a job that has ended, its history and its files."""
    await use_cases.delete(context.store, context.artifacts, job_id)
    return Response(status_code=204)


def _shown(view: JobView, status: int = 200, **headers: str) -> Response:
    return json_answer(job_json(view), status, headers | {"ETag": f'"{view.job.edition}"'})


def fingerprint(document: Any) -> str:
    """Return a digest of what was asked for: the same for JSON and YAML, whatever the order of keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=repr).encode()).hexdigest()


def _states(given: list[str]) -> frozenset[State]:
    found = set()
    for name in (part.strip() for text in given for part in text.split(",")):
        if name not in set(State):
            problem = Problem(loc="query.state", value=name, expected=f"one of {_STATES}", remedy="use one of them, or leave it out")
            raise InvalidError.of([problem])
        found.add(State(name))
    return frozenset(found)


def _labels(given: list[str]) -> tuple[tuple[str, str], ...]:
    found = []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problem = Problem(loc="query.label", value=text, expected="KEY=VALUE", remedy="write label=team=vision")
            raise InvalidError.of([problem])
        found.append((key, value))
    return tuple(found)


async def _edition(context: InContext, job_id: str, if_match: str | None) -> int | None:
    """Return the edition that the change is meant for; one that never was, where none of the client's tags is the job's."""
    if if_match is None or if_match.strip() == "*":
        return None
    job = await use_cases.find(context.store, job_id)
    tags = {tag.strip() for tag in if_match.split(",")}
    return job.edition if f'"{job.edition}"' in tags else -1
