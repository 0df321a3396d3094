"""A real controller as a process of its own, with its embedded Ray, that a test can kill and start again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from service import embedded
from service.client import Client
from service.processes import marked

START_TIMEOUT_S = 60.0


class Serving:
    """`syncbn serve` on one home. The embedded Ray outlives the controller; `close` ends both."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Client:
        """Start the controller and return a client that waits until it answers."""
        home = self.home
        home.mkdir(exist_ok=True)
        (home / "controller.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "service.cli.main", "serve", "--port", "0", "--home", str(home)]
        with (home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        until(lambda: (home / "controller.json").exists() or self.process.poll() is not None, START_TIMEOUT_S, "the controller to listen")
        assert self.process.poll() is None, (home / "serve.log").read_text()[-3000:]
        return Client(home=home)

    def kill(self) -> None:
        """SIGKILL the controller; its Ray and its gangs stay."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        """SIGTERM the controller and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def ranks(self) -> list[psutil.Process]:
        """Return the living processes of rank actors."""
        record = embedded._recorded(self.home)
        return [] if record is None else [process for process in marked(embedded.MARKER, record.session) if "RankActor" in process.name()]

    def close(self) -> None:
        """End the controller and everything it started."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        embedded.stop(self.home)


def until(look: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Look again and again until there is something to see."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.02)
    return seen


def spec(steps: int, **change: Any) -> dict[str, Any]:
    """Return the spec of a small job on real data, of `steps` steps."""
    return {
        "name": "test",
        "model": {"name": "resnet18", "args": {"width": 2}},
        "data": {"name": "digits"},
        "batch_size": 32,
        "steps": steps,
        "resources": {"workers": 2},
        **change,
    }


def is_alive(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
