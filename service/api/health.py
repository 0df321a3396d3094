"""Routes for whoever operates the service, without a token: is it alive, is it ready, what does it count."""

import logging

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.responses import Response

from service.api.context import InContext
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
    registry = CollectorRegistry()
    jobs = Gauge("syncbn_jobs", "Jobs by state.", ["state"], registry=registry)
    for state, number in (await context.store.jobs.counts()).items():
        jobs.labels(state.value).set(number)
    Gauge("syncbn_streams_open", "Live streams.", registry=registry).set(context.places.num_taken)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
