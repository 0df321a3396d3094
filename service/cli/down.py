"""`syncbn down`: the controller of a home and its embedded Ray, ranks included, come to an end."""

import os
import signal
import time
from contextlib import suppress

import typer

from service import embedded
from service.cli.exits import JOB_FAILED
from service.cli.home import claimed, holder
from service.cli.options import HomeOption, JsonFlag, Target
from service.cli.output import answer, complain, say
from service.cli.serve import read_settings
from service.settings import Home

PATIENCE_S = 15.0
"""A controller that has not ended by then is killed."""


def down(ctx: typer.Context, home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Stop the controller and the embedded Ray of this home. Jobs that are running stop too."""
    target = ctx.find_object(Target) or Target(None, None)
    chosen = home or target.home
    settings = read_settings({"home": chosen} if chosen else {})
    pid = stop_controller(settings.files) if settings.home.exists() else None
    if settings.home.exists():
        # With the lock held, no new controller starts a Ray while the old one is being stopped.
        with claimed(settings.files, patience_s=PATIENCE_S):
            try:
                embedded.stop(settings.home)
            except embedded.EmbeddedRayError as error:
                complain(error)
                raise typer.Exit(JOB_FAILED) from error
    said = f"stopped the controller (pid {pid}) and its Ray" if pid else "no controller was running; its Ray, if any, is stopped"
    answer({"home": str(settings.home), "controller_pid": pid}, as_json=as_json, show=lambda: say(f"{settings.home}: {said}"))


def stop_controller(home: Home) -> int | None:
    """End the controller that holds the home, in order if it can, and return its pid; None where none runs."""
    pid = holder(home)
    if pid is None:
        return None
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while holder(home) == pid:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)
    home.controller.unlink(missing_ok=True)
    return pid
