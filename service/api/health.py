"""Routes for whoever operates the service, without a token: is it alive, is it ready, what does it count."""

import logging

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from service.api.context import InContext
from service.api.metering import FileCounts
from service.store.errors import DatabaseError

router = APIRouter(tags=["health"])
_log = logging.getLogger(__name__)


@router.get("/healthz")
async def is_alive() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "not ready"}})
async def is_ready(context: InContext) -> Response:
    """Say whether the database answers."""
    try:
        await context.store.ping()
    except DatabaseError:
        _log.exception("the database does not answer")
        return JSONResponse({"status": "unavailable", "database": "unavailable"}, 503)
    return JSONResponse({"status": "ok", "database": "ok"})


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def get_counts(context: InContext) -> Response:
    """Show the counts in Prometheus' text format."""
    jobs = {state.value: number for state, number in (await context.store.jobs.counts()).items()}
    view = {} if context.controller is None else await context.controller.view()
    files = FileCounts(context.scrubber.num_verified, context.scrubber.num_damaged)
    return context.meter.exposition(jobs, context.places.num_taken, view, files)
