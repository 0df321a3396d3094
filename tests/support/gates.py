"""Gates in training: planted into the processes of ranks, so that a test does what it does at a known step, however fast the machine is.

Before a step that is a gate every rank waits, at its work as the controller sees it, until the test opens the gate, or has the ranks meet
anew; then it comes to the gate again.
"""

import time
from pathlib import Path
from typing import Any

LOOK_S = 0.01
PATIENCE_S = 300.0


class Gates:
    """The gates of one job: files in a directory."""

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder = folder
        self.steps = steps

    def open(self, step: int) -> None:
        """Let the ranks begin the step after so many completed ones."""
        (self.folder / f"gate-{step}").touch()

    def is_open(self, step: int) -> bool:
        """Return whether ranks may begin a step."""
        return step not in self.steps or (self.folder / f"gate-{step}").exists()


def plant(place: int, made_for: int, gates: Gates) -> None:
    """Have this process wait before gates."""
    from worker.training import Trainer

    original = Trainer.step

    def step(trainer: Trainer, number: int, orders: Any) -> Any:
        generation, deadline = orders.generation, time.monotonic() + PATIENCE_S
        while not gates.is_open(number) and not orders.is_superseded(generation) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        return original(trainer, number, orders)

    Trainer.step = step  # type: ignore[method-assign]
