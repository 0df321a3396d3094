"""How watched jobs look: on a terminal a board that moves, with a bar and the course of the loss; elsewhere lines. Knows no service."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.cli.following import Display, View
from service.cli.output import clean
from service.cli.tables import number, state_text

LINE_INTERVAL_S = 2.0
"""A pipe gets a line of progress of one job no more often."""
FIGURES = (("loss", "train/loss"), ("accuracy", "val/accuracy"), ("samples/s", "throughput/samples_per_s"))
SPARKS, ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"


def sparkline(values: Sequence[float], width: int, marks: str = SPARKS) -> str:
    """Return the course of values in at most `width` characters: each the mean of its share of them. What is no number is left out.

    >>> sparkline([8, 4, 2, 1, 1, 1], 3, "_-#")
    '#__'
    """
    finite = [value for value in values if math.isfinite(value)]
    width = min(width, len(finite))
    bounds = [index * len(finite) // width for index in range(width + 1)] if width else []
    means = [math.fsum(finite[start:end]) / (end - start) for start, end in pairwise(bounds)]
    low, span = (min(means), max(means) - min(means)) if means else (0.0, 0.0)
    return "".join(marks[round((mean - low) / span * (len(marks) - 1)) if span else 0] for mean in means)


def figures(view: View) -> str:
    """Return loss, accuracy and speed in one short text."""
    return "  ".join(f"{short} {number(view.values[name])}" for short, name in FIGURES if name in view.values)


class _Lines:
    """Plain lines; of progress at most one of each job per interval."""

    def __init__(self, console: Console, prefix: Callable[[View], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._prefix = prefix
        self._clock = clock
        self._shown: dict[str, tuple[float, int]] = {}

    def note(self, view: View, line: str) -> None:
        self._console.print(Text(clean(self._prefix(view) + line)), soft_wrap=True)

    def refresh(self, view: View) -> None:
        last, step = self._shown.get(view.job_id, (-LINE_INTERVAL_S, 0))
        if view.step != step and (self._clock() - last >= LINE_INTERVAL_S or view.step == view.total_steps):
            self._shown[view.job_id] = self._clock(), view.step
            self.note(view, f"step {view.step}/{number(view.total_steps)}  {figures(view)}")


class _Board:
    """Two rows a job under the lines that stay; drawn by a timer, so that it moves also while nothing happens."""

    def __init__(self, console: Console, views: Sequence[View], prefix: Callable[[View], str]) -> None:
        self._console = console
        self._views = views
        self._prefix = prefix
        self._since = time.monotonic()

    def note(self, view: View, line: str) -> None:
        self._console.print(Text(clean(self._prefix(view) + line)), soft_wrap=True)

    def refresh(self, view: View) -> None:
        """Leave it to the timer: events may come faster than anybody sees."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = ASCII_SPARKS if options.ascii_only else SPARKS
        elapsed = timedelta(seconds=int(time.monotonic() - self._since))
        yield Group(*(panel(view, options.max_width, f"{elapsed}", marks) for view in self._views))


def panel(view: View, width: int, elapsed: str, marks: str = SPARKS) -> Group:
    """Return what a board shows of one job: how far it is, and how it does."""
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_column(no_wrap=True, overflow="ellipsis", max_width=max(10, width // 4))
    for _ in range(5):
        head.add_column(no_wrap=True)
    bar = ProgressBar(total=view.total_steps or 1, completed=view.step if view.total_steps else 0, width=max(10, width // 4))
    steps = f"{view.step}/{view.total_steps}" if view.total_steps else ""
    epoch = "" if view.epoch is None else f"epoch {view.epoch:.1f}"
    head.add_row(Text(clean(view.name or view.job_id), style="bold"), state_text(view.state), bar, steps, epoch, elapsed)
    course = Text.assemble("  ", (sparkline(view.losses, max(10, width // 4), marks), "cyan"), "  ", figures(view))
    course.no_wrap, course.overflow = True, "ellipsis"
    return Group(head, course) if view.values else Group(head)


@contextmanager
def display(console: Console, views: Sequence[View]) -> Iterator[Display]:
    """Show jobs on a console: a board where somebody can see it move, else lines, which say whose they are where there are several."""

    def prefix(view: View) -> str:
        return f"{view.name or 'job'} {view.job_id[-4:]}: " if len(views) > 1 else ""

    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, prefix)
        return
    board = _Board(console, views, prefix)
    with Live(board, console=console, refresh_per_second=8):
        yield board
