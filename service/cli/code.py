"""The commands about uploaded code: ls, rm. Uploading is `syncbn submit --code`."""

from typing import Annotated

import typer

from service.cli.options import JsonFlag, connect
from service.cli.output import answer, clean, console, say
from service.cli.tables import code_table

app = typer.Typer(help="List and delete uploaded code. Needs a token with the scope code.", no_args_is_help=True)


@app.command("ls")
def ls(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the project's uploaded code, newest first."""
    with connect(ctx) as client:
        rows = list(client.code())
    answer({"data": rows}, as_json=as_json, show=lambda: console().print(code_table(rows)) if rows else say("no code"))


@app.command()
def rm(
    ctx: typer.Context,
    codes: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of uploaded code that no job names.", show_default=False)],
) -> None:
    """Delete uploaded code."""
    with connect(ctx) as client:
        for code in codes:
            client.delete_code(code)
            say(f"{clean(code)} is deleted")
