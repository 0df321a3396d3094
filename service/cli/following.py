"""Watching one job from its events until it ends: a bar on a terminal, lines in a pipe. Owns what a watcher sees of a job."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.cli.exits import JOB_FAILED, OK
from service.cli.output import clean
from service.cli.tables import number

LINE_INTERVAL_S = 2.0
"""A pipe gets a line of progress no more often."""


@dataclass
class View:
    """What the events so far say about a job."""

    state: str = "queued"
    step: int = 0
    total_steps: int | None = None
    values: dict[str, float] = field(default_factory=dict)

    def absorb(self, event: Mapping[str, Any]) -> str:
        """Take one event in and return what deserves a line of its own, or nothing."""
        data = event["data"]
        match event["type"]:
            case "metrics":
                self.step, self.total_steps = data["step"], data["total_steps"]
                self.values |= data["values"]
                return ""
            case "state":
                return self._enter(data)
            case "checkpoint":
                return f"checkpoint at step {data['step']}, {data['health']['status']}"
            case "recovery" | "resize":
                return f"{event['type']}: {data['message']}"
            case "warning":
                return f"warning: {data.get('message', data)}"
            case _:
                return ""

    def _enter(self, data: Mapping[str, Any]) -> str:
        if "state" not in data:  # a rank tells its phase
            return ""
        self.state = data["state"]
        why = data.get("message") or data.get("reason") or ""
        return f"{self.state}: {why}" if why else self.state

    def figures(self) -> str:
        """Return loss, accuracy and speed in one short text."""
        named = (("loss", "train/loss"), ("accuracy", "val/accuracy"), ("samples/s", "throughput/samples_per_s"))
        return "  ".join(f"{short} {number(self.values[name])}" for short, name in named if name in self.values)


class Display(Protocol):
    """Where a watcher's view goes."""

    def note(self, line: str) -> None:
        """Show a line that stays."""

    def refresh(self, view: View) -> None:
        """Show how far the job is."""


class _Lines:
    """Plain lines, at most one of progress per interval."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._last = -LINE_INTERVAL_S
        self._step = 0

    def note(self, line: str) -> None:
        self._console.print(Text(clean(line)), soft_wrap=True)

    def refresh(self, view: View) -> None:
        is_due = self._clock() - self._last >= LINE_INTERVAL_S or view.step == view.total_steps
        if view.step != self._step and is_due:
            self._last, self._step = self._clock(), view.step
            self.note(f"step {view.step}/{number(view.total_steps)}  {view.figures()}")


class _Bar:
    """A bar with figures, under the lines that stay."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("queued", total=None, steps="", figures="")

    def note(self, line: str) -> None:
        self._progress.console.print(Text(clean(line)), soft_wrap=True)

    def refresh(self, view: View) -> None:
        steps = f"{view.step}/{view.total_steps}" if view.total_steps else ""
        self._progress.update(
            self._task, description=clean(view.state), completed=view.step, total=view.total_steps, steps=steps, figures=view.figures()
        )


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """Show progress on a console: a bar where somebody can see it move."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}", style="bold"), BarColumn(), TextColumn("{task.fields[steps]}"),
        TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress)


def watch(events: Iterable[Mapping[str, Any]], show: Display) -> View:
    """Show every event until the last."""
    view = View()
    for event in events:
        if line := view.absorb(event):
            show.note(line)
        show.refresh(view)
    return view


def exit_code(jobs: Iterable[Mapping[str, Any]]) -> int:
    """Return the exit code for jobs that have ended.

    >>> exit_code([{"state": "succeeded"}, {"state": "cancelled"}])
    1
    """
    return OK if all(job["state"] == "succeeded" for job in jobs) else JOB_FAILED
