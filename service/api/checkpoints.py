"""Routes of checkpoints: list, manifest, statistics, pin, delete. The files are in `downloads`."""

from typing import Annotated

from fastapi import APIRouter, Query

from service import jobs as use_cases
from service.api.context import READ, Context, InContext
from service.api.parameters import MAX_SEQ, JobId, Step
from service.api.schemas import CheckpointPage, CheckpointShape
from service.api.statistics import StatisticsShape
from service.artifacts import Listed
from service.statistics import read_statistics
from service.store.ids import JOB_ID_PATTERN
from service.store.records import Checkpoint
from worker.contract import Manifest

router = APIRouter(tags=["checkpoints"], dependencies=[READ])

BeforeStep = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="the next_cursor of the page before")]
Layer = Annotated[str | None, Query(max_length=1000, description="only this layer, with the whole vectors")]
Against = Annotated[
    str | None,
    Query(
        pattern=rf"^({JOB_ID_PATTERN[1:-1]}/checkpoints/)?(latest|best|[0-9]{{1,15}})$",
        description="a checkpoint to compare with, this minus that: a step, `latest` or `best` of this job, or JOB_ID/checkpoints/STEP",
    ),
]


@router.get("/jobs/{job_id}/checkpoints")
async def list_checkpoints(
    job_id: JobId, context: InContext, after: BeforeStep = None, limit: Annotated[int, Query(ge=1, le=100)] = 100
) -> CheckpointPage:
    """List a job's checkpoints, newest first."""
    await use_cases.find(context.store, job_id)
    found = [one for one in await context.artifacts.of(job_id) if after is None or one.checkpoint.step < after]
    data, has_more = [_shown(context, one) for one in found[:limit]], len(found) > limit
    return CheckpointPage(data=data, has_more=has_more, next_cursor=str(data[-1].step) if has_more else None)


@router.get("/jobs/{job_id}/checkpoints/{step}")
async def get_checkpoint(job_id: JobId, step: Step, context: InContext) -> Manifest:
    """Show a checkpoint's manifest."""
    await use_cases.find(context.store, job_id)
    return (await context.artifacts.find(job_id, step)).manifest


@router.delete("/jobs/{job_id}/checkpoints/{step}", status_code=204)
async def delete_checkpoint(job_id: JobId, step: Step, context: InContext) -> None:
    """Delete a checkpoint that is not pinned, and not the newest of a job that has not ended."""
    await use_cases.find(context.store, job_id)
    await context.artifacts.remove(job_id, step)


@router.put("/jobs/{job_id}/checkpoints/{step}/pin")
async def pin_checkpoint(job_id: JobId, step: Step, context: InContext) -> CheckpointShape:
    """Pin a checkpoint: the retention rule never deletes it, and nobody can before the pin is removed."""
    await use_cases.find(context.store, job_id)
    return _shown(context, await context.artifacts.pin(job_id, step))


@router.delete("/jobs/{job_id}/checkpoints/{step}/pin")
async def unpin_checkpoint(job_id: JobId, step: Step, context: InContext) -> CheckpointShape:
    """Remove the pin of a checkpoint."""
    await use_cases.find(context.store, job_id)
    return _shown(context, await context.artifacts.unpin(job_id, step))


@router.get("/jobs/{job_id}/checkpoints/{step}/statistics", response_model_exclude_unset=True)
async def get_statistics(job_id: JobId, step: Step, context: InContext, layer: Layer = None, against: Against = None) -> StatisticsShape:
    """Show the running statistics of every layer, or of one with its vectors; and how they differ from another checkpoint's."""
    await use_cases.find(context.store, job_id)
    checkpoint = await context.artifacts.find(job_id, step)
    other = None if against is None else await _other(context, job_id, against)
    return StatisticsShape.model_validate(await read_statistics(context.artifacts, checkpoint, layer=layer, against=other))


def _shown(context: Context, listed: Listed) -> CheckpointShape:
    return CheckpointShape.of(listed, context.scrubber.damaged_files(listed.checkpoint))


async def _other(context: Context, job_id: str, against: str) -> Checkpoint:
    other_id, _, step = against.rpartition("/checkpoints/")
    await use_cases.find(context.store, other_id or job_id)
    return await context.artifacts.find(other_id or job_id, step)
