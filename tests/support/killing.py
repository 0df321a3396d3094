"""A home whose controllers are killed and started again, over processes that outlive them; and what must hold for its jobs."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from service.client import Client
from service.client.patience import Patience
from service.states import TERMINAL
from tests.support import mortal_controller
from tests.support.actor_host import ActorHost
from tests.support.forking import fork
from tests.support.mortal_controller import Point

STEPS = 9
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 600.0


def spec(script: str, steps: int = STEPS, **change: Any) -> dict[str, Any]:
    """Return a job whose ranks play a script. No restart is allowed: losing a gang that lives would fail it."""
    return {
        "name": script, "model": {"name": "resnet18"}, "data": {"name": "digits"}, "steps": steps,
        "resources": {"workers": 2}, "retries": {"recoveries": 1000, "restarts": 0}, "labels": {"script": script}, **change,
    }  # fmt: skip


class Killing:
    """One home, one host of ranks, one controller at a time. Use `killing` to make one. Several may share a host and a database."""

    def __init__(self, home: Path, host: ActorHost, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.host = host
        self._environment = environment or {}
        self.client = Client(home=home)
        self.serving_s: list[float] = []
        """How long each controller took until it served."""
        self._controller: Any = None

    def start(self, point: Point | None = None, *, is_awaited: bool = True) -> None:
        """Start a controller, mortal at a point, and wait until it serves, unless that is not to be awaited."""
        began = time.monotonic()
        self._controller = fork(mortal_controller.serve, self.home, self.host.address, self._environment, point)
        while is_awaited and not self._is_listening() and self._controller.is_alive():
            assert time.monotonic() - began < START_TIMEOUT_S, "the controller does not listen"
            time.sleep(0.01)
        if is_awaited:
            self.serving_s.append(time.monotonic() - began)
        self.client.close()
        self.client = Client(home=self.home, patience=Patience(tries=2, first_wait_s=0.05))

    @property
    def pid(self) -> int:
        """Of the controller."""
        return int(self._controller.pid)

    @property
    def log(self) -> str:
        """What its controllers have logged."""
        return (self.home / "serve.log").read_text()

    def _is_listening(self) -> bool:
        note = self.home / "controller.json"
        return note.exists() and json.loads(note.read_text())["pid"] == self._controller.pid

    def kill(self) -> None:
        """SIGKILL the controller, if it lives."""
        if self._controller is not None:
            self._controller.kill()
            self._controller.join(10)

    def end(self) -> None:
        """Have the controller end well, with what it has to give back."""
        self._controller.terminate()
        self._controller.join(30)
        assert self._controller.exitcode is not None, f"the controller does not end\n{self.log[-3000:]}"

    def is_killed(self, timeout_s: float) -> bool:
        """Wait for the controller's death; return whether it was by SIGKILL."""
        self._controller.join(timeout_s)
        return bool(self._controller.exitcode == -signal.SIGKILL)

    def ended(
        self, job_id: str, state: str, ask: Callable[[Callable[[], Any]], Any] = lambda call: call(), client: Client | None = None
    ) -> dict[str, Any]:
        """Wait for the end of a job; assert that it is this one, and that nothing was lost, doubled or left behind; return the job.

        Args:
            job_id: the job.
            state: in which it is to end.
            ask: how to call what may be away.
            client: whom to ask; the home's own where None.
        """
        client = client or self.client

        def if_ended() -> dict[str, Any] | None:
            job = ask(lambda: client.job(job_id))
            return job if job["state"] in TERMINAL else None

        job = until(if_ended, END_TIMEOUT_S, f"the end of {job_id}", self.home)
        assert self.host.left(job_id) == [], "a process or a room was left behind"
        assert self.host.violations == []
        assert job["state"] == state, f"{job['reason']}: {job['message']}"
        events = ask(lambda: list(client.events(job_id)))
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["type"] for event in events].count("end") == 1
        assert events[-1]["type"] == "end"
        series = ask(lambda: client.metrics(job_id, ["train/loss"]))["series"]
        _require_every_step(job, events, [step for step, _ in series[0]["points"]] if series else [])
        assert not (self.home / "storage/.gangs" / f"{job_id}-{len(job['attempts'])}").exists()
        published = {path.name for path in (self.home / f"storage/jobs/{job_id}/checkpoints").glob("*")}
        assert published == {f"step-{one['step']:08d}" for one in ask(lambda: list(client.checkpoints(job_id)))}
        return job


def _require_every_step(job: dict[str, Any], events: list[dict[str, Any]], series: list[int]) -> None:
    """Assert that what rank 0 said in each attempt is on record once and in order, and that whole where the job went to its end."""
    last = 0
    for attempt in job["attempts"]:
        mine = [event for event in events if (event["attempt"], event["rank"]) == (attempt["number"], 0)]
        lines = [int(event["data"]["message"]) for event in mine if event["type"] == "log"]
        steps = [event["data"]["step"] for event in mine if event["type"] == "metrics"]
        assert lines == list(range(last + 1, last + 1 + len(lines))), "each attempt goes on where the one before ended"
        # The controller may have heard a line and not yet the metric behind it, when a cancel ended the rank.
        assert steps in (lines, lines[:-1])
        last = lines[-1] if lines else last
    assert series == list(range(1, len(series) + 1))
    if job["state"] == "succeeded":
        assert last == len(series) == job["spec"]["steps"]


def until(look: Any, timeout_s: float, what: str, home: Path) -> Any:
    """Look again and again until there is something to see."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}\n{(home / 'serve.log').read_text()[-3000:]}"
        time.sleep(0.03)
    return seen


@contextlib.contextmanager
def killing(directory: Path) -> Iterator[Killing]:
    """Lend a home with its host; every process is ended afterwards."""
    with ActorHost(directory) as host, home_of(directory / "home", host) as world:
        yield world


@contextlib.contextmanager
def home_of(home: Path, host: ActorHost, environment: Mapping[str, str] | None = None) -> Iterator[Killing]:
    """Lend a home for controllers of a host's ranks; its controller is ended afterwards."""
    home.mkdir(mode=0o700)
    # The server from which processes are forked imports everything first, which no controller's start is to be charged with.
    fork(int).join(START_TIMEOUT_S)
    world = Killing(home, host, environment)
    try:
        yield world
    finally:
        world.kill()
        world.client.close()
