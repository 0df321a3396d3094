"""The commands about jobs: submit, fork, ls, get, wait, logs, metrics, pause, resume, resize, cancel."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from service.cli.completion import states
from service.cli.exits import INTERRUPTED, JOB_FAILED, UsageError
from service.cli.following import exit_code
from service.cli.options import FollowFlag, JobArgument, JobsArgument, JsonFlag, SetOption, connect, connect_async, full_id
from service.cli.output import answer, clean, complain, console, print_json, say
from service.cli.specs import read_changes, read_spec
from service.cli.tables import job_table, jobs_table, metrics_table
from service.cli.watching import watch_jobs
from service.client import Client, Job


def submit(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="YAML or JSON file; - for stdin.", show_default=False)],
    assignments: SetOption = None,
    code: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Upload this directory, and have the job use it.", show_default=False)
    ] = None,
    follow: FollowFlag = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the spec and print it with every default.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a training job."""
    document = read_spec(spec, assignments or ())
    with connect(ctx) as client:
        if code is not None:
            document["code"] = client.upload_code(code)["id"]
        if dry_run:
            print_json(client.validate(document))
            return
        tell(ctx, client.submit(document), follow=follow, as_json=as_json)


def fork(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    job: JobArgument,
    step: Annotated[str, typer.Option(help="Of the checkpoint to begin with: a step, latest or best.")] = "latest",
    assignments: SetOption = None,
    follow: FollowFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job like another one that begins with the weights of one of its checkpoints."""
    changes = read_changes(assignments or ())
    with connect(ctx) as client:
        tell(ctx, client.fork(full_id(client, job), step, changes=changes), follow=follow, as_json=as_json)


def tell(ctx: typer.Context, job: Job, *, follow: bool, as_json: bool) -> None:
    """Say that a job was submitted, and watch it to its end where that is asked."""
    if as_json:
        print_json(job, is_line=follow)
    else:
        console().print(f"{job['id']}  {job['state']}", soft_wrap=True)
    if follow:
        raise typer.Exit(watch_jobs(connect_async(ctx), [job], as_json=as_json))


def ls(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.", show_default=False, autocompletion=states)] = None,
    label: Annotated[str | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this label.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    with connect(ctx) as client:
        jobs = list(client.jobs(state=state, label=label, limit=limit))
    answer(
        {"data": jobs}, as_json=as_json, show=lambda: console().print(jobs_table(jobs)) if jobs else say("no jobs; `syncbn submit SPEC`")
    )


def get(ctx: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Show one job."""
    with connect(ctx) as client:
        found = client.job(full_id(client, job))
    answer(found, as_json=as_json, show=lambda: console().print(job_table(found)))


def wait(
    ctx: typer.Context,
    jobs: JobsArgument,
    timeout_s: Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to wait for each job.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Wait until jobs have ended; exit 1 unless all succeeded."""
    with connect(ctx) as client:
        try:
            ended = [client.wait(full_id(client, job), timeout_s=timeout_s) for job in jobs]
        except TimeoutError as error:
            complain(error)
            raise typer.Exit(JOB_FAILED) from error
    answer({"data": ended}, as_json=as_json, show=lambda: console().print(jobs_table(ended)))
    raise typer.Exit(exit_code(ended))


def logs(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank.", show_default=False)] = None,
    grep: Annotated[
        str | None, typer.Option("--grep", "-g", metavar="TEXT", help="Only lines with this text, in capitals or not.", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what the ranks wrote."""
    out = console()
    with connect(ctx) as client:
        job_id = full_id(client, job)
        try:
            show = client.follow_logs if follow else client.logs
            for line in show(job_id, rank=rank, contains=grep):
                if as_json:
                    print_json(line, is_line=True)
                else:
                    out.print(_log_line(line), soft_wrap=True)
        except KeyboardInterrupt:
            say(f"{job_id} is not affected; stop it with `syncbn cancel {job_id}`")
            raise typer.Exit(INTERRUPTED) from None


def _log_line(line: Mapping[str, Any]) -> Text:
    is_grave = str(line["level"] or "").lower() in {"error", "critical"} or line["stream"] == "stderr"
    rank = "-" if line["rank"] is None else line["rank"]
    return Text.assemble((f"[{rank}] ", "dim"), (clean(line["message"]), "red" if is_grave else ""))


def metrics(
    ctx: typer.Context,
    job: JobArgument,
    names: Annotated[list[str] | None, typer.Option("--name", help="Only this metric; may be repeated.", show_default=False)] = None,
    max_points: Annotated[int, typer.Option(min=2, max=10_000, help="Thin every series out to so many points.")] = 500,
    as_json: JsonFlag = False,
) -> None:
    """Show a job's metrics: every series in summary, with --json every point."""
    with connect(ctx) as client:
        found = client.metrics(full_id(client, job), names or (), max_points=max_points)
    answer(found, as_json=as_json, show=lambda: console().print(metrics_table(found["series"])))


def pause(ctx: typer.Context, jobs: JobsArgument, as_json: JsonFlag = False) -> None:
    """Pause jobs: each saves after its present step and gives its room back."""
    _ask(ctx, jobs, Client.pause, as_json=as_json)


def resume(ctx: typer.Context, jobs: JobsArgument, as_json: JsonFlag = False) -> None:
    """Resume paused jobs; each goes on from the step at which it was paused."""
    _ask(ctx, jobs, Client.resume, as_json=as_json)


def resize(
    ctx: typer.Context,
    job: JobArgument,
    workers: Annotated[int, typer.Argument(min=1, metavar="N", help="How many workers; of an elastic job, at most.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Give a job another number of workers while it trains; more of them as soon as there is room."""
    with connect(ctx) as client:
        asked = client.resize(full_id(client, job), workers)
    answer(asked, as_json=as_json, show=lambda: console().print(jobs_table([asked])))


def cancel(ctx: typer.Context, jobs: JobsArgument, as_json: JsonFlag = False) -> None:
    """Cancel jobs; each is cancelled once its processes are gone (`syncbn wait ID`)."""
    _ask(ctx, jobs, Client.cancel, as_json=as_json)


def _ask(ctx: typer.Context, jobs: list[str], what: Callable[[Client, str], dict[str, Any]], *, as_json: bool) -> None:
    if not jobs:
        raise UsageError("no job id; `syncbn ls` lists them")
    with connect(ctx) as client:
        asked = [what(client, full_id(client, job)) for job in jobs]
    answer({"data": asked}, as_json=as_json, show=lambda: console().print(jobs_table(asked)))
