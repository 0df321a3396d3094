"""The command line put together: global options and every command."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from service.cli import checkpoints, code, comparisons, demo, doctor, down, export, jobs, serve, tokens, usage, watching
from service.cli.exits import Shell
from service.cli.options import Target

app = typer.Typer(
    cls=Shell,
    help="Train models with synchronized BatchNorm: submit jobs, watch them, download checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"syncbn {version('syncbn')}")
        raise typer.Exit


@app.callback()
def _globals(
    ctx: typer.Context,
    url: Annotated[
        str | None, typer.Option("--url", help="Address of the service. Default: SYNCBN_URL, else the home's.", show_default=False)
    ] = None,
    home: Annotated[
        Path | None, typer.Option("--home", help="Home of a controller on this machine. Default: SYNCBN_HOME.", show_default=False)
    ] = None,
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    ctx.obj = Target(url, home)


_COMMANDS: tuple[Callable[..., None], ...] = (
    serve.serve,
    jobs.submit,
    jobs.fork,
    watching.watch,
    jobs.ls,
    jobs.get,
    jobs.wait,
    jobs.logs,
    jobs.metrics,
    jobs.pause,
    jobs.resume,
    jobs.resize,
    jobs.cancel,
    comparisons.compare,
    usage.usage,
    export.export_tensorboard,
    export.mirror,
    down.down,
    demo.demo,
    doctor.doctor,
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(tokens.app, name="tokens")
app.add_typer(code.app, name="code")
