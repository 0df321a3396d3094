"""Routes of what a job says while it lives: events and logs, as pages and as streams, and metric series."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel

from service import jobs as use_cases
from service.api.context import READ, Context, InContext, InIdentity
from service.api.downsampling import downsample
from service.api.parameters import MAX_SEQ, MAX_STEP, AfterSeq, BeforeSeq, Contains, EventLimit, JobId, RankFilter
from service.api.schemas import EventPage, EventShape, LogPage, LogShape, MetricsShape, SeriesShape
from service.auth import is_still_admitted
from service.logs import log_line
from service.needle import Needle
from service.states import TERMINAL
from service.store.records import Event, Job, Token
from service.streams import StreamFilter, follow
from worker.contract import EventType

router = APIRouter(tags=["streams"], dependencies=[READ])

LastEventId = Annotated[int | None, Header(ge=0, le=MAX_SEQ, description="resumes a stream after this `id`")]
TypeFilter = Annotated[list[EventType], Query(alias="type", description="only events of these types; repeated; a stream has the `end` too")]
MetricName = Annotated[list[str], Query(description="only these series; repeated")]
_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "the stream is over: the job has ended and its `end` has been read"},
}


@router.get("/jobs/{job_id}/events", response_model=EventPage, responses=_STREAM)
async def list_events(
    job_id: JobId,
    request: Request,
    context: InContext,
    identity: InIdentity,
    *,
    type_: TypeFilter = [],  # noqa: B006 - FastAPI copies it
    after: AfterSeq = 0,
    before: BeforeSeq = None,
    limit: EventLimit = 100,
    last_event_id: LastEventId = None,
) -> Any:
    """List a job's events, oldest first; with `Accept: text/event-stream`, follow them live to the `end`."""
    if _wants_stream(request):
        wanted = StreamFilter((*type_, EventType.END) if type_ else ())
        return await _stream(context, identity, job_id, _start(after, last_event_id), wanted, _event_line)
    await use_cases.find(context.store, job_id)
    found = await context.store.events.page(job_id, after, limit + 1, types=type_, before_seq=before)
    page, has_more, cursor = _cut(found, limit, is_backwards=before is not None)
    return EventPage(data=[EventShape.model_validate(event) for event in page], has_more=has_more, next_cursor=cursor)


@router.get("/jobs/{job_id}/logs", response_model=LogPage, responses=_STREAM)
async def list_logs(
    job_id: JobId,
    request: Request,
    context: InContext,
    identity: InIdentity,
    *,
    rank: RankFilter = None,
    contains: Contains = None,
    after: AfterSeq = 0,
    before: BeforeSeq = None,
    limit: EventLimit = 100,
    last_event_id: LastEventId = None,
) -> Any:
    """List what the ranks wrote, oldest first; with `Accept: text/event-stream`, follow it live to the `end`.

    With `contains` the whole log is searched, for about half a second a page: a page may have few lines or none and yet a `next_cursor`.
    """
    needle = None if contains is None else Needle(contains)
    if _wants_stream(request):
        wanted = StreamFilter((EventType.LOG, EventType.END), rank, needle)
        return await _stream(context, identity, job_id, _start(after, last_event_id), wanted, _log_line)
    await use_cases.find(context.store, job_id)
    if needle is not None:
        found = await context.store.logs.search(job_id, needle, limit, after_seq=after, before_seq=before, rank=rank)
        return _log_page(found.lines, found.num_searched, None if found.next_seq is None else str(found.next_seq))
    some = await context.store.events.page(job_id, after, limit + 1, types=(EventType.LOG,), rank=rank, before_seq=before)
    page, _, cursor = _cut(some, limit, is_backwards=before is not None)
    return _log_page(page, len(page), cursor)


@router.get("/jobs/{job_id}/metrics")
async def get_metrics(
    job_id: JobId,
    context: InContext,
    *,
    name: MetricName = [],  # noqa: B006 - FastAPI copies it
    max_points: Annotated[int, Query(ge=2, le=10_000, description="most points of one series; the peaks stay")] = 1000,
    from_step: Annotated[int, Query(ge=0, le=MAX_STEP, description="only points of this step and later ones")] = 0,
    to_step: Annotated[int, Query(ge=0, le=MAX_STEP, description="only points of this step and earlier ones")] = MAX_STEP,
) -> MetricsShape:
    """Show metric series, thinned out so that first, last, highest and lowest of the steps asked for stay.

    A name without points has an empty series.
    """
    job = await use_cases.find(context.store, job_id)
    store, steps = context.store.metrics, (from_step, to_step)
    names = dict.fromkeys(name) or await store.names(job_id)
    series = [SeriesShape(name=one, points=downsample(await store.points(job_id, one, max_points, steps), max_points)) for one in names]
    is_empty = job.state in TERMINAL and bool(job.metrics) and not any(one.points for one in series)
    return MetricsShape(series=series, is_pruned=is_empty and not await store.names(job_id))


def _cut(found: Sequence[Event], limit: int, *, is_backwards: bool) -> tuple[Sequence[Event], bool, str | None]:
    """Return the page of events of which one too many was read where there is more; that there is; and the seq to go on from."""
    if len(found) <= limit:
        return found, False, None
    page = found[-limit:] if is_backwards else found[:limit]
    return page, True, str(page[0 if is_backwards else -1].seq)


def _log_page(lines: Sequence[Event], num_searched: int, cursor: str | None) -> LogPage:
    data = [LogShape.model_validate(log_line(event)) for event in lines]
    return LogPage(data=data, has_more=cursor is not None, next_cursor=cursor, num_searched=num_searched)


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "").lower()


def _start(after: int, last_event_id: int | None) -> int:
    return after if last_event_id is None else last_event_id


def _event_line(event: Event) -> bytes:
    return _line(event, EventShape.model_validate(event))


def _log_line(event: Event) -> bytes:
    is_line = event.type in {EventType.LOG, EventType.GAP}
    return _line(event, LogShape.model_validate(log_line(event))) if is_line else _event_line(event)


def _line(event: Event, shape: BaseModel) -> bytes:
    return format_sse_event(data_str=shape.model_dump_json(), event=event.type.value, id=str(event.seq))


async def _stream(  # noqa: PLR0917 - called from two places above
    context: Context, identity: Token, job_id: str, after_seq: int, wanted: StreamFilter, form: Callable[[Event], bytes]
) -> Response:
    job = await use_cases.find(context.store, job_id)
    if job.state in TERMINAL and after_seq >= job.last_seq:
        # The answer at which an EventSource stops to reconnect.
        return Response(status_code=204)
    context.places.check(identity.id)
    return EventSourceResponse(_lines(context, identity, job, after_seq, wanted, form), headers={"X-Accel-Buffering": "no"})


async def _lines(  # noqa: PLR0917 - called from one place above
    context: Context, identity: Token, job: Job, after_seq: int, wanted: StreamFilter, form: Callable[[Event], bytes]
) -> AsyncIterator[bytes]:
    with context.places.taken(identity.id):
        # Something at once, so that the client knows that it is connected.
        yield KEEPALIVE_COMMENT
        looked_at = time.monotonic()
        async for told in follow(context.tails, job, after_seq, wanted, context.settings.heartbeat_s):
            if time.monotonic() - looked_at >= context.settings.heartbeat_s:
                # A stream outlives many requests; it does not outlive its token.
                if not await is_still_admitted(context.store, identity):
                    return
                looked_at = time.monotonic()
            yield KEEPALIVE_COMMENT if told is None else told.as_(form)
