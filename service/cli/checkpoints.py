"""The commands about checkpoints: ls, download, stats, diff, recalibrate, export, predict, pin, unpin, rm."""

import mimetypes
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from service.cli.exits import UsageError
from service.cli.jobs import tell
from service.cli.options import FollowFlag, JobArgument, JsonFlag, SetOption, StepArgument, connect, full_id
from service.cli.output import answer, console, say
from service.cli.specs import read_changes
from service.cli.tables import checkpoints_table, difference_table, predictions_table, size, statistics_table
from service.client import Client
from service.client.checkpoint_answers import Manifest

app = typer.Typer(help="List, download and inspect checkpoints.", no_args_is_help=True)


@app.command("ls")
def ls(ctx: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """List a job's checkpoints, newest first."""
    with connect(ctx) as client:
        rows = list(client.checkpoints(full_id(client, job)))
    answer({"data": rows}, as_json=as_json, show=lambda: console().print(checkpoints_table(rows)) if rows else say("no checkpoint yet"))


@app.command()
def download(
    ctx: typer.Context,
    job: JobArgument,
    step: StepArgument = "best",
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory. Default: ID-step-STEP here.", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Download a checkpoint and verify every file. Interrupted, it goes on where it stopped."""
    with connect(ctx) as client:
        job_id = full_id(client, job)
        manifest = client.manifest(job_id, step)
        target = directory or Path(f"{job_id}-step-{manifest['step']:08d}")
        manifest = fetch(client, job_id, manifest["step"], target, console(stderr=True))
    found = {"directory": str(target), "step": manifest["step"], "files": manifest["files"]}
    answer(
        found,
        as_json=as_json,
        show=lambda: console().print(Text(f"{target}: step {manifest['step']}, every digest verified"), soft_wrap=True),
    )


def fetch(client: Client, job_id: str, step: int | str, target: Path, out: Console) -> Manifest:
    """Download a checkpoint with a bar per file, or one line per file where nobody can see a bar move; return its manifest."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=out, disable=not out.is_terminal) as bars:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        manifest = client.download(job_id, step, target, show)
    if not out.is_terminal:
        for name, entry in manifest["files"].items():
            out.print(f"{name}  {size(entry['size'])}  sha256 {entry['sha256']} verified", soft_wrap=True)
    return manifest


@app.command()
def stats(
    ctx: typer.Context,
    job: JobArgument,
    step: StepArgument = "best",
    layer: Annotated[str | None, typer.Option(help="Only this layer; with --json its vectors too.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the running statistics of every normalization layer of a checkpoint."""
    with connect(ctx) as client:
        found = client.statistics(full_id(client, job), step, layer=layer)
    answer(found, as_json=as_json, show=lambda: console().print(statistics_table(found["layers"])))


@app.command()
def diff(
    ctx: typer.Context,
    job: JobArgument,
    step: StepArgument = "best",
    against: Annotated[str, typer.Option(help="STEP of the same job, or JOB_ID/checkpoints/STEP.")] = "latest",
    as_json: JsonFlag = False,
) -> None:
    """Show how the running statistics of a checkpoint differ from another's: this minus that."""
    with connect(ctx) as client:
        job_id = full_id(client, job)
        found = client.statistics(job_id, step, against=against)
    if found.get("against") == {"job_id": job_id, "step": found["step"]}:
        say(f"{step} and {against} are one checkpoint, that of step {found['step']}; name another by --against (`syncbn checkpoints ls`)")
    answer(found, as_json=as_json, show=lambda: console().print(difference_table(found["layers"])))


@app.command()
def recalibrate(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    job: JobArgument,
    step: StepArgument = "best",
    num_samples: Annotated[int, typer.Option(min=1, help="Of the training data; at most all.")] = 10_000,
    estimator: Annotated[str, typer.Option(help="exact, of the population, or mean_of_batches.")] = "exact",
    assignments: SetOption = None,
    follow: FollowFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job that re-estimates the running statistics of a checkpoint and publishes them in one of its own."""
    changes = read_changes(assignments or ())
    with connect(ctx) as client:
        made = client.recalibrate(full_id(client, job), step, num_samples=num_samples, estimator=estimator, changes=changes)
        tell(ctx, made, follow=follow, as_json=as_json)


@app.command()
def export(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    job: JobArgument,
    step: StepArgument = "best",
    formats: Annotated[list[str], typer.Option("--format", help="plain, folded or onnx; may be repeated.", show_default=False)] = [],  # noqa: B006 - Typer copies it
    assignments: SetOption = None,
    follow: FollowFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job that brings a checkpoint into other formats; they are files of its checkpoint."""
    if not formats:
        raise UsageError("no --format; expected plain, folded or onnx, as in --format onnx")
    changes = read_changes(assignments or ())
    with connect(ctx) as client:
        made = client.export(full_id(client, job), step, formats=formats, changes=changes)
        tell(ctx, made, follow=follow, as_json=as_json)


@app.command()
def predict(
    ctx: typer.Context,
    job: JobArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG or another image file.", show_default=False)],
    step: Annotated[str, typer.Option(help="Of the checkpoint: a step, latest or best.")] = "best",
    as_json: JsonFlag = False,
) -> None:
    """Classify one image by the running statistics of a checkpoint."""
    if not (mimetypes.guess_type(image.name, strict=False)[0] or "").startswith("image/"):
        raise UsageError(
            f"{image} is no image by its name; expected .png, .jpg, .webp, .bmp, .gif or .tiff; give another file, or rename it"
        )
    with connect(ctx) as client:
        found = client.predict(full_id(client, job), step, image)
    answer(found, as_json=as_json, show=lambda: console().print(predictions_table(found["predictions"])))


@app.command()
def pin(ctx: typer.Context, job: JobArgument, step: StepArgument = "best", as_json: JsonFlag = False) -> None:
    """Keep a checkpoint from being pruned or deleted."""
    with connect(ctx) as client:
        found = client.pin(full_id(client, job), step)
    answer(found, as_json=as_json, show=lambda: say(f"checkpoint {found['step']} is pinned"))


@app.command()
def unpin(ctx: typer.Context, job: JobArgument, step: StepArgument = "best", as_json: JsonFlag = False) -> None:
    """Leave a checkpoint to the retention rule again."""
    with connect(ctx) as client:
        found = client.unpin(full_id(client, job), step)
    answer(found, as_json=as_json, show=lambda: say(f"checkpoint {found['step']} is not pinned"))


@app.command()
def rm(
    ctx: typer.Context, job: JobArgument, step: Annotated[int, typer.Argument(help="The step, a number.")], as_json: JsonFlag = False
) -> None:
    """Delete a checkpoint: not a pinned one, and not the newest of a job that has not ended."""
    with connect(ctx) as client:
        client.delete_checkpoint(full_id(client, job), step)
    answer({"deleted": step}, as_json=as_json, show=lambda: say(f"checkpoint {step} is deleted"))
