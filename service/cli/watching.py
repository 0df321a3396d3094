"""The command `watch`, and what `submit --watch` does: several jobs at once, each followed to its end over one client."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from service.cli.board import display
from service.cli.exits import INTERRUPTED
from service.cli.following import View, exit_code, show_event
from service.cli.options import JobsArgument, JsonFlag, connect, connect_async, full_id
from service.cli.output import complain, console, print_json, say
from service.client import AsyncClient, AsyncJob, Job


def watch(ctx: typer.Context, jobs: JobsArgument, as_json: JsonFlag = False) -> None:
    """Watch jobs live until they end; exit 1 unless all succeeded."""
    with connect(ctx) as client:
        found = [client.job(full_id(client, job)) for job in dict.fromkeys(jobs)]
    raise typer.Exit(watch_jobs(connect_async(ctx), found, as_json=as_json))


def watch_jobs(client: AsyncClient, jobs: Sequence[Job], *, as_json: bool) -> int:
    """Show jobs until they end, or, as JSON, print their events, one a line; and return the exit code."""
    try:
        with _printed(jobs) if as_json else _shown(jobs) as tell:
            ended = asyncio.run(_follow_all(client, [job.id for job in jobs], tell))
    except KeyboardInterrupt:
        ids = " ".join(job.id for job in jobs)
        say(f"{ids} goes on without you; come back with `syncbn watch {ids}`, stop it with `syncbn cancel {ids}`")
        return INTERRUPTED
    for job in ended:
        if exit_code([job]):
            complain(f"{job.id} {job['state']} ({job['reason']}): {job['message']}")
    return exit_code(ended)


Tell = Callable[[str, Mapping[str, Any]], None]
"""Takes the id of a job and an event of it."""


@contextmanager
def _shown(jobs: Sequence[Job]) -> Iterator[Tell]:
    views = {job.id: View(job.id, str(job["name"])) for job in jobs}
    with display(console(), list(views.values())) as show:
        yield lambda job_id, event: show_event(event, views[job_id], show)


@contextmanager
def _printed(jobs: Sequence[Job]) -> Iterator[Tell]:
    yield lambda job_id, event: print_json({"job": job_id, **event} if len(jobs) > 1 else event, is_line=True)


async def _follow_all(client: AsyncClient, ids: Sequence[str], tell: Tell) -> list[AsyncJob]:
    async with client:
        return await asyncio.gather(*(_follow(client, job_id, tell) for job_id in ids))


async def _follow(client: AsyncClient, job_id: str, tell: Tell) -> AsyncJob:
    async for event in client.follow_events(job_id):
        tell(job_id, event)
    return await client.job(job_id)
