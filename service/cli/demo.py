"""`syncbn demo`: the whole path on real data, from nothing, and back to nothing. Owns the tidying, whatever happens and whenever."""

import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.text import Text

from service import embedded
from service.cli.exits import INTERRUPTED, JOB_FAILED, code_of
from service.cli.family import Family
from service.cli.home import holder
from service.cli.interrupts import Interrupted, guarded
from service.cli.options import JsonFlag
from service.cli.output import clean, complain, console, print_json, say
from service.cli.stage import DemoError, Stage
from service.client import ClientError
from service.settings import Home

CONTROLLER_END_S = 5.0
LOG_TAIL_BYTES = 4000


def demo(
    workers: Annotated[int, typer.Option(min=1, max=8, help="Ranks that train together.")] = 2,
    keep: Annotated[Path | None, typer.Option(help="Keep the downloaded checkpoint in this directory.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train on real data from nothing, download the checkpoint, predict with it, and leave nothing behind."""
    began = time.monotonic()
    with guarded() as guard:
        family = Family()
        # The path is known before the directory exists, so that there is no moment at which it exists and is not known.
        root = Path(tempfile.gettempdir()) / f"syncbn-demo-{family.mark[:12]}"
        checkpoint = (keep or root / "checkpoint").absolute()
        out = console(stderr=as_json)
        stage = Stage(root / "home", root / "controller.log", checkpoint, workers, family, guard, out)
        code, result = JOB_FAILED, None
        try:
            try:
                guard.arm()
                root.mkdir(mode=0o700)
                result = stage.play()
                code = 0
            finally:
                guard.disarm()
        except Interrupted as error:
            code = INTERRUPTED
            _murmur(f"{error}: stopping everything this demo started")
        except (DemoError, ClientError, OSError, ValueError, KeyError) as error:
            code = _explain(error, stage.log)
        finally:
            guard.disarm()
            tidy_up(root, family)
    if result is not None:
        kept = {"checkpoint": str(checkpoint)} if keep else {}
        out.print(Text(f"\nDone in {time.monotonic() - began:.0f} s; everything that was started is stopped.", style="bold green"))
        if as_json:
            print_json({**result, **kept})
    raise typer.Exit(code)


def tidy_up(root: Path, family: Family) -> None:
    """End every process of the demo and remove its files. Each part is done, whatever becomes of the others.

    Raises:
        ProcessesLeftError: some would not go.
    """
    home = root / "home"
    with ExitStack() as parts:
        parts.callback(shutil.rmtree, root, ignore_errors=True)
        parts.callback(family.end)
        if home.exists():
            parts.callback(_end_ray, home)
            parts.callback(_end_controller, home, family)


def _end_controller(home: Path, family: Family) -> None:
    """Let the controller end in order, if it will."""
    pid = holder(Home(home))
    for process in family.members():
        if process.pid == pid:
            with suppress(psutil.Error):
                process.terminate()
                process.wait(CONTROLLER_END_S)


def _end_ray(home: Path) -> None:
    # What it cannot end carries the family's mark too, and is reported there.
    with suppress(embedded.EmbeddedRayError):
        embedded.stop(home)


def _explain(error: Exception, log: Path) -> int:
    """Say what went wrong and show the end of the controller's log."""
    with suppress(OSError):
        if isinstance(error, ClientError | OSError):
            code_of(error)
        else:
            complain(error if isinstance(error, DemoError) else f"unexpected answer: {type(error).__name__}: {error}")
        if log.exists():
            tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            say(f"the end of the controller's log:\n{clean(tail)}")
    return JOB_FAILED


def _murmur(message: str) -> None:
    # The terminal may be gone: that is what SIGHUP says.
    with suppress(OSError):
        say(message)
