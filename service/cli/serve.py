"""`syncbn serve`: one controller on one home, on one port. Owns the process: its lock, its socket, its signals, its end."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Annotated, Any

import structlog
import typer
import uvicorn
from pydantic import ValidationError

from service.api.guards import is_loopback
from service.cli.connections import PatientProtocol
from service.cli.exits import JOB_FAILED, UsageError
from service.cli.home import announced, claimed
from service.cli.log import log_to_stderr
from service.cli.options import HomeOption, Target
from service.cli.output import complain, say
from service.policy import PolicyError
from service.settings import Home, Settings, otlp_endpoint
from service.tracing import Tracing, TracingError
from worker.storage.profiles import StorageConfigError

GRACE_S = 2
"""Open streams are cut so long after the signal to end."""
LAST_S = 8.0
"""The process ends so long after the signal, whatever it waits for: what matters is in the database and in Ray."""


def serve(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    home: HomeOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="0: a free one. [default: 8470]", show_default=False)] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="sqlite:///PATH or postgresql://USER@HOST/DB (password: PGPASSFILE). Default: in the home.", show_default=False),
    ] = None,
    storage: Annotated[str | None, typer.Option(help="Directory that all nodes share. Default: in the home.", show_default=False)] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running Ray. Default: an embedded one.", show_default=False)
    ] = None,
) -> None:
    """Run the controller, its dashboard and, where no Ray address is set, an embedded Ray."""
    target = ctx.find_object(Target) or Target(None, None)
    places = {"home": home or target.home, "database_url": database_url, "storage": storage}
    flags = places | {"host": host, "port": port, "ray_address": ray_address}
    settings = read_settings({name: value for name, value in flags.items() if value is not None})
    with claimed(settings.files), bound(settings.host, settings.port) as listener:
        require_token(settings)
        if not _run(settings, listener):
            complain("the controller did not start; the log above says why; `syncbn doctor` checks this installation")
            raise typer.Exit(JOB_FAILED)


def read_settings(flags: dict[str, Any]) -> Settings:
    """Return the settings of the environment under those of the command line.

    Raises:
        UsageError: a value is out of its range.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, row['loc']))} is {row['input']!r}: {row['msg']}" for row in error.errors())
        raise UsageError("; ".join(lines) + "; mend the flag or its SYNCBN_ variable") from error


def require_token(settings: Settings) -> None:
    """Raise UsageError where the controller would be open to a network on its first start, before its owner has a token."""
    if not is_loopback(settings.host) and not settings.files.token.is_file():
        raise UsageError(
            f"{settings.host} can be reached from other machines, and the home {settings.home} has no token yet; expected one before; "
            "make it with `syncbn tokens init`, or listen on 127.0.0.1"
        )


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Hold a listening address, before anything is started that would have to be stopped again.

    Raises:
        UsageError: it is taken, forbidden or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port (0: any free one) or --host"
        ) from error
    with listener:
        yield listener


def url_of(host: str, port: int) -> str:
    """Return the URL under which a process on this machine reaches the address.

    >>> url_of("0.0.0.0", 80), url_of("::1", 80)
    ('http://127.0.0.1:80', 'http://[::1]:80')
    """
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _run(settings: Settings, listener: socket.socket) -> bool:
    """Serve until a signal; return whether it ever came up."""
    from service.app import create_app
    from service.controller import build_controller

    url = url_of(settings.host, listener.getsockname()[1])
    try:
        tracing = Tracing() if otlp_endpoint() else None
        log_to_stderr(settings.log_format, *([tracing.annotate] if tracing else []))
        application = create_app(settings, controller=build_controller(settings), tracing=tracing)
    except (PolicyError, StorageConfigError, TracingError) as error:
        raise UsageError(str(error)) from error
    config = uvicorn.Config(
        application,
        http=PatientProtocol,
        lifespan="on",
        ws="none",
        log_level="warning",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    with ExitStack() as until_the_end:

        def listening() -> None:
            until_the_end.enter_context(announced(settings.files, url))
            _greet(settings, url, application.state.first_token)

        server = _Server(config, listening, settings.files)
        server.run(sockets=[listener])
        return server.started


def _leave(home: Home) -> None:
    # A thread that waits inside Ray for a cluster which does not answer cannot be interrupted, and Python would wait for it.
    home.controller.unlink(missing_ok=True)
    os._exit(0)


def _greet(settings: Settings, url: str, first_token: str | None) -> None:
    # A token belongs on a screen, not into the file or the journal that stdout may be.
    if first_token and sys.stdout.isatty():
        print(f"{url}/#token={first_token}", flush=True)
        if settings.log_format == "console":
            say("This address of the dashboard, token included, is shown this once; the token stays in the home.")
    else:
        print(url, flush=True)
        if first_token and settings.log_format == "console":
            say(f"A token for it is in {settings.files.token}, for its owner's eyes only.")
    if settings.log_format == "json":
        structlog.get_logger().info("listening", url=url, home=str(settings.home))
        return
    say(f"Listening on {url}, home {settings.home}. Ctrl-C ends the controller; jobs go on. `syncbn down` ends everything.")


class _Server(uvicorn.Server):
    """A uvicorn that tells when it listens and ends the process in order, instead of by the signal it was sent."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None], home: Home) -> None:
        super().__init__(config)
        self._listening = listening
        self._last_resort = threading.Timer(LAST_S, _leave, [home])
        self._last_resort.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Ray takes SIGTERM first, as a crash to be reported, and has an alarm abort the process after 3 s: an orderly end may take longer.
        signal.alarm(0)
        if not self.should_exit:
            self._last_resort.start()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._listening()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
