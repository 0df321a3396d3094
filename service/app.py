"""Builds the application: the only place where the parts of the controller are wired together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI

from service.api import (
    checkpoints,
    cluster,
    code,
    comparisons,
    dashboard,
    derivations,
    downloads,
    health,
    jobs,
    predictions,
    problems,
    streams,
    telemetry,
    tokens,
)
from service.api.context import Context, Controller, identity_of
from service.api.description import describe
from service.api.guards import Guards
from service.api.metering import Meter, Metered
from service.artifacts import Artifacts
from service.auth import ensure_first_token
from service.catalogue import rebuild
from service.limits import RequestRates
from service.policy import PolicyFile
from service.predictor import Predictor
from service.pruning import Pruner
from service.reading import Verified
from service.scrubbing import Scrubber
from service.settings import Settings
from service.store.store import Store
from service.streams import StreamPlaces
from service.tails import Tails
from service.tracing import Tracing
from worker.storage.opening import open_storage

_log = logging.getLogger(__name__)


def create_app(settings: Settings, controller: Controller | None = None, tracing: Tracing | None = None) -> FastAPI:
    """Return the application.

    While it runs (its lifespan), the store is open, and `app.state.first_token` is a token that was just made, or None where the one in
    the home is good: whoever serves the application shows it to the owner once.

    Args:
        settings: where everything is.
        controller: what runs the jobs; with None they stay queued.
        tracing: where traces go; None for nowhere.
    """
    meter = Meter()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        storage = open_storage(settings.storage_url)
        async with await Store.open(settings.store_url, max_log_bytes=settings.max_log_bytes) as store:
            if tracing is not None:
                store.changes.on_state_left = tracing.state_left
            app.state.first_token = await ensure_first_token(store, settings.files.token)
            artifacts = Artifacts(store, storage)
            places = StreamPlaces(settings.max_streams, settings.max_streams_per_token)
            rates, policy = RequestRates(settings.max_requests_per_s), PolicyFile(settings.policy_path)
            verified = Verified()
            predictor, scrubber = Predictor(artifacts, verified), Scrubber(store, artifacts, verified)
            app.state.context = Context(
                settings, store, storage, artifacts, predictor, verified, scrubber, places, rates, Tails(store), meter, policy, controller
            )
            # Beside the work: with many jobs both take a while.
            works = (rebuild(store, storage), Pruner(store, storage, policy).run(), scrubber.run())
            async with _beside(*works), _running(controller, store):
                try:
                    yield
                finally:
                    await predictor.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="syncbn",
        version=version("syncbn"),
        description="Distributed training with synchronized BatchNorm.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    routed = (jobs, streams, telemetry, checkpoints, downloads, derivations, predictions, comparisons, cluster, code, tokens)
    for router in (module.router for module in routed):
        app.include_router(router, prefix="/v1", dependencies=[Depends(identity_of)])
    app.include_router(health.router)
    dashboard.mount(app)
    problems.install(app)
    app.add_middleware(Guards, settings=settings)
    app.add_middleware(Metered, meter=meter)
    if tracing is not None:
        tracing.watch(app)
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
