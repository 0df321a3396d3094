"""Routes of checkpoints: list, manifest, statistics. The files are in `downloads`."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from service import jobs as use_cases
from service.api.context import READ, InContext
from service.api.parameters import MAX_SEQ, JobId, Step
from service.api.schemas import CheckpointPage, CheckpointShape
from service.statistics import read_statistics
from worker.contract import Manifest

router = APIRouter(tags=["checkpoints"], dependencies=[READ])

BeforeStep = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="the next_cursor of the page before")]
Layer = Annotated[str | None, Query(max_length=1000, description="only this layer, with the whole vectors")]
Against = Annotated[str | None, Query(pattern=r"^(latest|best|[0-9]{1,15})$", description="a checkpoint to compare with: this minus that")]


@router.get("/jobs/{job_id}/checkpoints")
async def list_checkpoints(
    job_id: JobId, context: InContext, after: BeforeStep = None, limit: Annotated[int, Query(ge=1, le=100)] = 100
) -> CheckpointPage:
    """List a job's checkpoints, newest first."""
    await use_cases.find(context.store, job_id)
    found = [one for one in await context.artifacts.of(job_id) if after is None or one.checkpoint.step < after]
    data, has_more = [CheckpointShape.of(one) for one in found[:limit]], len(found) > limit
    return CheckpointPage(data=data, has_more=has_more, next_cursor=str(data[-1].step) if has_more else None)


@router.get("/jobs/{job_id}/checkpoints/{step}")
async def get_checkpoint(job_id: JobId, step: Step, context: InContext) -> Manifest:
    """Show a checkpoint's manifest."""
    await use_cases.find(context.store, job_id)
    return (await context.artifacts.find(job_id, step)).manifest


@router.get("/jobs/{job_id}/checkpoints/{step}/statistics")
async def get_statistics(job_id: JobId, step: Step, context: InContext, layer: Layer = None, against: Against = None) -> dict[str, Any]:
    """Show the running statistics of every layer, or of one with its vectors; and how they differ from another checkpoint's."""
    await use_cases.find(context.store, job_id)
    checkpoint = await context.artifacts.find(job_id, step)
    other = None if against is None else await context.artifacts.find(job_id, against)
    return await read_statistics(context.artifacts, checkpoint, layer=layer, against=other)
