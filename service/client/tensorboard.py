"""TensorBoard event files of what a job measured. Loads the tensorboard package, an optional extra, only where one is written."""

import os
from collections.abc import Sequence
from pathlib import Path

from service.client.errors import MissingExtra
from service.client.history import Point


def write_events(job_id: str, measured: Sequence[Point], directory: Path) -> Path:
    """Write one event file for a job into a directory of its own there, replacing what an earlier call wrote; return the file.

    Raises:
        MissingExtra: the tensorboard package is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise MissingExtra("event files for TensorBoard", "tensorboard", "tensorboard") from error
    began_s = measured[0].at_s if measured else 0.0
    path = directory / job_id / f"events.out.tfevents.{int(began_s):010d}.{job_id}"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as stream:
        writer = RecordWriter(stream)
        writer.write(Event(wall_time=began_s, file_version="brain.Event:2").SerializeToString())
        for point in measured:
            summary = Summary(value=[Summary.Value(tag=point.name, simple_value=point.value)])
            writer.write(Event(wall_time=point.at_s, step=point.step, summary=summary).SerializeToString())
    unfinished.replace(path)
    return path
