"""The application behind a real socket, for what only shows there: live streams, HEAD, broken connections."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from service.app import create_app
from service.cli.connections import PatientProtocol
from service.settings import Settings
from tests.service.api.world import World


class _Portal:
    """Runs coroutine functions on the server's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call(self, function: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(180)


@contextmanager
def served(home: Path, **changes: Any) -> Iterator[World]:
    """Serve an application on a free port of this machine, in a thread."""
    settings = Settings(home=home, **changes)
    app = create_app(settings)
    config = uvicorn.Config(app, http=PatientProtocol, port=0, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []
    is_up = threading.Event()

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        is_up.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert is_up.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    token = settings.files.token.read_text().strip()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
            client.app, client.portal = app, _Portal(loops[0])  # what World asks of a client
            yield World(client, settings)
    finally:
        server.should_exit = True
        thread.join(20)
