"""Watching jobs from their events until they end. Owns what a watcher knows of a job; how it looks is `service.cli.board`'s."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from service.cli.exits import JOB_FAILED, OK

MAX_LOSSES = 4096
"""Points of the loss that are kept; beyond, every second one goes, and of what follows too."""


@dataclass
class View:
    """What the events so far say about a job."""

    job_id: str
    name: str = ""
    state: str = "queued"
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    num_losses: int = 0
    stride: int = 1
    """Of so many values of the loss one is kept."""

    def absorb(self, event: Mapping[str, Any]) -> str:
        """Take one event in and return what deserves a line of its own, or nothing."""
        data = event["data"]
        match event["type"]:
            case "metrics":
                self._measure(data)
                return ""
            case "state":
                return self._enter(data)
            case "checkpoint":
                return f"checkpoint at step {data['step']}, {data['health']['status']}"
            case "warning" | "recovery" | "resize":
                return f"{event['type']}: {data.get('message', data)}"
            case _:
                return ""

    def _measure(self, data: Mapping[str, Any]) -> None:
        self.step, self.total_steps, self.epoch = data["step"], data["total_steps"], data.get("epoch")
        self.values |= data["values"]
        if "train/loss" not in data["values"]:
            return
        if self.num_losses % self.stride == 0:
            self.losses.append(data["values"]["train/loss"])
        self.num_losses += 1
        if len(self.losses) > MAX_LOSSES:
            del self.losses[1::2]
            self.stride *= 2

    def _enter(self, data: Mapping[str, Any]) -> str:
        if "state" not in data:  # a rank tells its phase
            return ""
        self.state = data["state"]
        why = data.get("message") or data.get("reason") or ""
        return f"{self.state}: {why}" if why else self.state


class Display(Protocol):
    """Where watchers' views go."""

    def note(self, view: View, line: str) -> None:
        """Show a line about a job that stays."""

    def refresh(self, view: View) -> None:
        """Show how far a job is."""


def show_event(event: Mapping[str, Any], view: View, display: Display) -> None:
    """Take an event in and show what it changed."""
    if line := view.absorb(event):
        display.note(view, line)
    display.refresh(view)


def exit_code(jobs: Iterable[Mapping[str, Any]]) -> int:
    """Return the exit code for jobs that have ended.

    >>> exit_code([{"state": "succeeded"}, {"state": "cancelled"}])
    1
    """
    return OK if all(job["state"] == "succeeded" for job in jobs) else JOB_FAILED
