"""The commands that bring what jobs measured into other tools: export-tensorboard, mirror."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import JobArgument, JobsArgument, JsonFlag, connect, full_id
from service.cli.output import answer, say


class Tool(StrEnum):
    """Where a job may be mirrored to."""

    MLFLOW = "mlflow"


def export_tensorboard(
    ctx: typer.Context,
    job: JobArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `tensorboard --logdir` is given.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Write what a job measured as an event file for TensorBoard, into a directory of its own in DIR. Again: brings it up to date."""
    with connect(ctx) as client:
        path = client.export_tensorboard(full_id(client, job), directory)
    answer({"path": str(path)}, as_json=as_json, show=lambda: say(f"{path}; look at it with `tensorboard --logdir {directory}`"))


def mirror(
    ctx: typer.Context,
    jobs: JobsArgument,
    to: Annotated[Tool, typer.Option("--to", help="The other tool; of MLflow the one at MLFLOW_TRACKING_URI.")] = Tool.MLFLOW,
    experiment: Annotated[str, typer.Option(help="In which experiment.")] = "syncbn",
    as_json: JsonFlag = False,
) -> None:
    """Bring jobs into another tool, spec and metrics; again: bring what is there up to date."""
    with connect(ctx) as client:
        ids = [full_id(client, job) for job in jobs]
        runs = {job_id: client.mirror_to_mlflow(job_id, experiment=experiment) for job_id in ids}
    lines = "\n".join(f"{job_id} is run {run} of {to}" for job_id, run in runs.items())
    answer({"runs": runs}, as_json=as_json, show=lambda: say(lines))
