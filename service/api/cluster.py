"""Routes of what surrounds the jobs: the cluster, the queue, and the names that a spec may use."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query

from service.api.context import READ, InContext, InIdentity
from service.api.schemas import CataloguePage, EntryShape, GroupUsageShape, QueuedShape, QueuePage, Shape, UsageShape
from service.quotas import Quota
from service.store.records import Job
from service.store.usage import Used
from service.waiting import Wait, in_line
from worker.contract import AUTO, DATASETS, MODELS, NORMS
from worker.contract.catalogue import Entry

router = APIRouter(tags=["cluster"], dependencies=[READ])


class NodeShape(Shape):
    """A machine of the cluster. Of `resources` (CPU, GPU, and memory in bytes) `free` says what of CPU and GPU is not in use."""

    id: str
    address: str
    is_alive: bool
    resources: dict[str, float]
    free: dict[str, float]
    """Empty where the node is gone."""


class RoomShape(Shape):
    """What all living nodes have together, and what of it is free."""

    total_cpus: float
    total_gpus: int
    free_cpus: float
    free_gpus: int


class ClusterShape(Shape):
    """The cluster, as this controller sees it."""

    is_connected: bool
    message: str
    """Why it is not connected."""
    nodes: list[NodeShape]
    room: RoomShape | None
    """Null while it is not connected."""
    gangs: list[str]
    """Ids of the jobs that have processes."""


@router.get("/cluster")
async def get_cluster(context: InContext, identity: InIdentity) -> ClusterShape:
    """Show the nodes and what is free on them, and which of the project's jobs have a gang."""
    if context.controller is None:
        return ClusterShape(is_connected=False, message="this controller runs no jobs", nodes=[], room=None, gangs=[])
    view = ClusterShape.model_validate(await context.controller.view())
    if identity.is_admin:
        return view
    return view.model_copy(update={"gangs": sorted(await context.store.jobs.of_project(view.gangs, identity.project))})


@router.get("/queue")
async def get_queue(
    context: InContext,
    identity: InIdentity,
    after: Annotated[int, Query(ge=0, le=2**31, description="only what is behind this place")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> QueuePage:
    """Show the jobs that wait, in the order in which they may start, and why they wait.

    Places are counted over all projects, and those of other projects are left out: a page may hold less than its limit.
    """
    found = await context.store.jobs.queue(after, limit + 1)
    known = {} if context.controller is None else context.controller.waiting
    places = enumerate(found[:limit], after + 1)
    data = [_queued(job, position, known.get(job.id)) for position, job in places if identity.sees(job.project)]
    has_more = len(found) > limit
    return QueuePage(data=data, has_more=has_more, next_cursor=str(after + limit) if has_more else None)


@router.get("/usage")
async def get_usage(context: InContext, identity: InIdentity) -> UsageShape:
    """Show what the groups of every quota use of it. For others than admins, the groups that the project has jobs in."""
    data = []
    for quota in context.policy.current().quotas:
        used = await context.store.usage.of(quota)
        seen = used.keys() if identity.is_admin else await context.store.usage.groups_with(quota, identity.project)
        data += [_used(quota, group, used[group]) for group in sorted(used.keys() & seen)]
    return UsageShape(data=data)


@router.get("/models")
async def list_models() -> CataloguePage:
    """List the models that a spec may name."""
    return _page(MODELS)


@router.get("/datasets")
async def list_datasets() -> CataloguePage:
    """List the data sets that a spec may name."""
    return _page(DATASETS)


@router.get("/norms")
async def list_norms() -> CataloguePage:
    """List the kinds of normalization that a spec may name."""
    return _page({**NORMS, AUTO.name: AUTO})


def _queued(job: Job, position: int, wait: Wait | None) -> QueuedShape:
    """Show a waiting job with the newest that is known of why it waits, else with what is stored."""
    wait = wait or Wait(job.reason, job.message)
    message = f"{wait.message}; {in_line(position)}" if wait.message else in_line(position)
    said = {"position": position, "workers": job.document["resources"]["workers"], "reason": wait.reason, "message": message}
    return QueuedShape.model_validate(vars(job) | said)


def _used(quota: Quota, group: str, used: Used) -> GroupUsageShape:
    limits = quota.model_dump(include=set(vars(used)), exclude_none=True)
    return GroupUsageShape(by=quota.by, subject=quota.subject, value=group, used=vars(used), limits=limits)


def _page(table: Mapping[str, Entry]) -> CataloguePage:
    return CataloguePage(data=[EntryShape(name=one.name, summary=one.summary, args=one.args.model_json_schema()) for one in table.values()])
