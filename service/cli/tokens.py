"""The commands about tokens: init, create, ls, revoke, rotate."""

import re
from typing import Annotated, Final

import typer
from rich.text import Text

from service.auth import write_first_token
from service.cli.exits import UsageError
from service.cli.options import JsonFlag, Target, connect
from service.cli.output import answer, clean, console, say
from service.cli.serve import read_settings
from service.cli.tables import tokens_table
from service.client.answers import NewToken
from service.scopes import DEFAULT_PROJECT, Scope

app = typer.Typer(help="Make, list, renew and revoke tokens. Needs an admin's token, such as the home's.", no_args_is_help=True)

TokenArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of a token; `syncbn tokens ls` lists them.", show_default=False)]
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command()
def init(ctx: typer.Context) -> None:
    """Make the first token of a home that has none, before a controller runs on it. Needed to serve more than this machine."""
    target = ctx.find_object(Target) or Target(None, None)
    path = read_settings({} if target.home is None else {"home": target.home}).files.token
    try:
        print(write_first_token(path))
    except FileExistsError as error:
        raise UsageError(f"{path} is there already; use the token in it, or `syncbn tokens rotate` to renew it") from error
    say(f"This token may do everything. It is in {path}, for its owner's eyes only.")


@app.command()
def create(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who has it, what for.", show_default=False)],
    scopes: Annotated[list[Scope] | None, typer.Option("--scope", help="What it may do; repeat. [default: read, submit]")] = None,
    project: Annotated[str, typer.Option(help="Whose jobs it sees.")] = DEFAULT_PROJECT,
    expires: Annotated[str | None, typer.Option(metavar="90d", help="Ends after so long. Default: never.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a token and print it, this once."""
    wanted = [scope.value for scope in scopes or (Scope.READ, Scope.SUBMIT)]
    with connect(ctx) as client:
        made = client.create_token(name, wanted, project=project, expires_in_s=None if expires is None else seconds(expires))
    _show_once(made, as_json=as_json)


@app.command("ls")
def ls(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List tokens, newest first. The tokens themselves are nowhere but with their owners."""
    with connect(ctx) as client:
        rows = list(client.tokens())
    answer({"data": rows}, as_json=as_json, show=lambda: console().print(tokens_table(rows)))


@app.command()
def revoke(ctx: typer.Context, token: TokenArgument) -> None:
    """Have a token admitted no more, from now on."""
    with connect(ctx) as client:
        client.revoke_token(token)
    say(f"{clean(token)} is revoked")


@app.command()
def rotate(
    ctx: typer.Context,
    token: TokenArgument,
    overlap: Annotated[str, typer.Option(metavar="1h", help="How long the old one is still admitted.")] = "1h",
    as_json: JsonFlag = False,
) -> None:
    """Make a token like another one and print it, this once; the old one ends after the overlap."""
    with connect(ctx) as client:
        made = client.rotate_token(token, overlap_s=seconds(overlap))
    _show_once(made, as_json=as_json)


def seconds(text: str) -> float:
    """Return a length of time in seconds.

    >>> seconds("90d"), seconds("0s")
    (7776000, 0)
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise UsageError(f"{text!r} is no length of time; expected a number and s, m, h or d; for example 90d")
    return int(found[1]) * _SECONDS[found[2]]


def _show_once(made: NewToken, *, as_json: bool) -> None:
    answer(made, as_json=as_json, show=lambda: console().print(Text(made["token"]), soft_wrap=True))
    say(f"{made['id']}: keep the token now; it is not shown again.")
