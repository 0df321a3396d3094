"""Options and arguments that several commands share, and the client that they configure."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from service.cli.completion import assignments, job_ids
from service.cli.exits import UsageError
from service.client import AsyncClient, Client

JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Job id, the beginning of one, or a name that one job has.", show_default=False, autocompletion=job_ids
    ),
]
JobsArgument = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="Job ids, their beginnings, or names.", show_default=False, autocompletion=job_ids)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", help="Change one value of the spec; may be repeated.", show_default=False, autocompletion=assignments
    ),
]
StepArgument = Annotated[str, typer.Argument(metavar="[STEP]", help="A step, latest or best.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
FollowFlag = Annotated[bool, typer.Option("--follow", "--watch", "-f", help="Watch the job live until it ends; exit 1 if it fails.")]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="State directory. Default: SYNCBN_HOME, else the platform's.", show_default=False)
]

_FULL_ID = re.compile(r"^job_[0-9A-HJKMNP-TV-Z]{26}$")


@dataclass(frozen=True)
class Target:
    """Which service the commands talk to; None: environment, else home."""

    url: str | None
    home: Path | None


def connect(ctx: typer.Context) -> Client:
    """Return a client of the service that the command line names."""
    target = ctx.find_object(Target) or Target(None, None)
    return Client(target.url, home=target.home)


def connect_async(ctx: typer.Context) -> AsyncClient:
    """Return the other client of the same service."""
    target = ctx.find_object(Target) or Target(None, None)
    return AsyncClient(target.url, home=target.home)


def full_id(client: Client, text: str) -> str:
    """Return the id that `text` names among the newest hundred jobs, or `text` itself where it is a whole id.

    Raises:
        UsageError: none or several have that beginning or that name.
    """
    if _FULL_ID.match(text):
        return text
    start = text if text.startswith("job_") else f"job_{text.upper()}"
    jobs = list(client.jobs(limit=100))
    found = [job.id for job in jobs if job.id.startswith(start)] or [job.id for job in jobs if job["name"] == text]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"no job's id is or begins with {text!r}, and none has that name, among the newest 100; `syncbn ls` lists them")
    raise UsageError(f"{text!r} names {len(found)} jobs ({', '.join(found[:3])}, ...); give more of it, or the id")
