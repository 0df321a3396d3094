"""Builds the application: the only place where the parts of the controller are wired together."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import APIRouter, Depends, FastAPI

from service.api import checkpoints, cluster, comparisons, dashboard, downloads, health, jobs, problems, streams, telemetry
from service.api.context import Context, Controller, authenticated
from service.api.description import describe
from service.api.guards import Guards
from service.api.metering import Meter, Metered
from service.artifacts import Artifacts
from service.auth import ensure_first_token
from service.policy import PolicyFile
from service.settings import Settings
from service.store.store import Store
from service.streams import StreamPlaces
from service.tails import Tails

_log = logging.getLogger(__name__)


def create_app(settings: Settings, controller: Controller | None = None) -> FastAPI:
    """Return the application.

    While it runs (its lifespan), the store is open, and `app.state.first_token` is a token that was just made, or None where the one in
    the home is good: whoever serves the application shows it to the owner once.

    Args:
        settings: where everything is.
        controller: what runs the jobs; with None they stay queued.
    """
    meter = Meter()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.storage_path.mkdir(parents=True, exist_ok=True)
        async with await Store.open(settings.store_url, max_log_bytes=settings.max_log_bytes) as store:
            app.state.first_token = await ensure_first_token(store, settings.files.token)
            artifacts, places = Artifacts(store, settings.storage_path), StreamPlaces(settings.max_streams)
            policy = PolicyFile(settings.policy_path)
            app.state.context = Context(settings, store, artifacts, places, Tails(store), meter, policy, controller)
            async with _running(controller, store):
                yield

    app = FastAPI(
        title="syncbn",
        version=version("syncbn"),
        description="Distributed training with synchronized BatchNorm.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(authenticated)])
    for router in (jobs.router, streams.router, telemetry.router, checkpoints.router, downloads.router, comparisons.router, cluster.router):
        v1.include_router(router)
    app.include_router(v1)
    app.include_router(health.router)
    dashboard.mount(app)
    problems.install(app)
    app.add_middleware(Guards, settings=settings)
    app.add_middleware(Metered, meter=meter)
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _running(controller: Controller | None, store: Store) -> AsyncIterator[None]:
    if controller is None:
        yield
        return
    await controller.start(store)
    try:
        yield
    finally:
        await controller.stop()
