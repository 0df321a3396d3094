"""Our jobs beside what their users would run otherwise, on one machine and in one run: `make bench-training`.

    python -m tests.benchmarks.training [--rounds N] [--steps N] [--only steps start recovery checkpoint telemetry]

- steps: the median time of a step of ResNet-18 at 32 x 32, batch 64 over two ranks: a job on the real service with its embedded Ray,
  against a plain script with DistributedDataParallel and *local* BatchNorm; and against the same where ranks only wait for each other in
  every norm, which is what synchronizing costs whoever does it. In turns, so many rounds; the first steps of each are left out.
- start: from submitting to the first completed step, to a controller and to a Ray cluster that are up and have trained one job before;
  against the same model under Ray Train in a Ray job.
- recovery: from `kill -9` of a rank to the next completed step; against Ray Train with a checkpoint every ten steps.
- checkpoint: what a checkpoint of ResNet-50 costs the training thread, against torch.save (see tests/benchmarks/checkpoint.py).
- telemetry: what a watched step costs beyond one that is not, and so what watching every 100th costs.

Ray Train is asked for by `pip install "ray[train]"`; without it its rows say so.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from service.client import Client
from tests.benchmarks import checkpoint, recovery, served, telemetry_cost
from tests.benchmarks.stock_training import SPEC
from tests.support.serving import Serving, until

WARM_STEPS = 3
PATIENCE_S = 300.0
KILLS = 3
SCRIPTS = {"ddp": "DDP with local BatchNorm", "meeting": "the same, in whose norms the ranks meet"}
Row = tuple[str, str, str, str]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    print("| what | ours | theirs | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-training-") as directory:
        for part in options.only:
            for row in PARTS[part](Path(directory), options.rounds, options.steps):
                print(f"| {' | '.join(row)} |", flush=True)


def _steps(home: Path, rounds: int, steps: int) -> Iterator[Row]:
    """Yield the rows of the step times."""
    ours: list[float] = []
    theirs: dict[str, list[float]] = {script: [] for script in SCRIPTS}
    with _service(home / "steps") as client:
        for number in range(rounds):
            ours += _of_a_job(client, steps)
            for script, seen in theirs.items():
                seen.extend(_of_a_script(script, home / f"{script}-{number}", steps))
    for script, seen in theirs.items():
        step, other = statistics.median(ours), statistics.median(seen)
        yield f"a step, against {SCRIPTS[script]}", f"{step:.3f} s", f"{other:.3f} s", f"{step / other:.2f}"


def _of_a_job(client: Client, steps: int) -> list[float]:
    return _intervals(_step_times(client, {"steps": WARM_STEPS + steps}))


def _of_a_script(script: str, out: Path, steps: int) -> list[float]:
    out.mkdir()
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(served.free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.benchmarks.stock_training", script, str(out), str(WARM_STEPS + steps)]
    ranks = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(2)]
    try:
        assert [rank.wait(PATIENCE_S * 4) for rank in ranks] == [0, 0], "the script failed"
    finally:
        for rank in ranks:
            rank.kill()
    return _intervals([at for _, at in _recorded(out)])


def _intervals(times: list[float]) -> list[float]:
    return [after - before for before, after in zip(times[WARM_STEPS:], times[WARM_STEPS + 1 :], strict=False)]


def _start(home: Path, rounds: int, steps: int) -> Iterator[Row]:
    """Yield the row of the times to the first step."""
    del steps
    ours, theirs = [], []
    with _service(home / "start") as client:
        for _ in range(rounds + 1):
            began = time.time()
            ours.append(_step_times(client, {"steps": 1})[0] - began)
    what = "from submitting to the first step, against Ray Train in a Ray job"
    if find_spec("pandas") is None or find_spec("tensorboardX") is None:
        yield what, _seconds(ours[1:]), "not measured: Ray Train is not installed", "-"
        return
    with _ray(home) as submit:
        for number in range(rounds + 1):
            began = time.time()
            out = submit(f"start-{number}", 1)
            theirs.append(until(lambda out=out: _recorded(out), PATIENCE_S, "the first step under Ray Train")[0][1] - began)
            time.sleep(10)  # its workers end
    yield what, _seconds(ours[1:]), _seconds(theirs[1:]), _ratio(ours[1:], theirs[1:])


def _recovery(home: Path, rounds: int, steps: int) -> Iterator[Row]:
    """Yield the row of the times from a kill to the next step."""
    del rounds, steps
    what = "from kill -9 of a rank to the next step, against Ray Train"
    ours = [seconds for *_, seconds in recovery.measure(home / "recovery", KILLS)]
    if find_spec("pandas") is None or find_spec("tensorboardX") is None:
        yield what, _seconds(ours), "not measured: Ray Train is not installed", "-"
        return
    with _ray(home) as submit:
        out = submit("recovery-stock", 100_000)
        theirs, lost = zip(*(_kill_of_ray_train(out, number) for number in range(KILLS)), strict=True)
    yield what, f"{_seconds(ours)}, no step lost", f"{_seconds(theirs)}, {', '.join(map(str, lost))} steps lost", _ratio(ours, theirs)


def _kill_of_ray_train(out: Path, number: int) -> tuple[float, int]:
    """Kill a worker; return the seconds to the next step, and how many steps are done again."""
    until(lambda: len(_recorded(out)) >= 15 * (number + 1), PATIENCE_S * 2, "steps under Ray Train")
    killed_at, reached = time.time(), _recorded(out)[-1][0]
    os.kill(int((out / f"pid-{number % 2}").read_text()), signal.SIGKILL)
    step, at = until(lambda: _first_of_next_run(out, reached, killed_at), PATIENCE_S, "Ray Train to go on")
    return at - killed_at, reached - step + 1


def _first_of_next_run(out: Path, reached: int, since: float) -> tuple[int, float] | None:
    """Return the first step after a death: the one that does not follow on the last before it."""
    steps = [entry for entry in _recorded(out) if entry[1] > since]
    for before, entry in zip([reached, *(step for step, _ in steps)], steps, strict=False):
        if entry[0] != before + 1:
            return entry
    return None


def _checkpoint(home: Path, rounds: int, steps: int) -> Iterator[Row]:
    """Yield the rows of what a checkpoint costs."""
    del home, steps
    for what, is_small in (("ResNet-50", False), ("a small network", True)):
        stalls = checkpoint.measure(2 * rounds + 1, is_small=is_small)
        ours, theirs = [stall.background.all_s for stall in stalls], [stall.synchronous.all_s for stall in stalls]
        yield f"a checkpoint while {what} trains, against torch.save", _seconds(ours, 3), _seconds(theirs, 3), _ratio(ours, theirs)


def _telemetry(home: Path, rounds: int, steps: int) -> Iterator[Row]:
    """Yield the row of what watching costs."""
    watched, plain, share = telemetry_cost.measure(home / "telemetry", rounds * steps)
    cost = (watched - plain) * share / plain
    yield (
        f"a watched step, one of {round(1 / share)}, against one that is not",
        f"{watched:.3f} s",
        f"{plain:.3f} s",
        f"{100 * cost:.2f} % in all",
    )


PARTS: dict[str, Callable[[Path, int, int], Iterator[Row]]] = {
    "steps": _steps, "start": _start, "recovery": _recovery, "checkpoint": _checkpoint, "telemetry": _telemetry,
}  # fmt: skip


@contextmanager
def _service(home: Path) -> Iterator[Client]:
    serving = Serving(home)
    try:
        with serving.start() as client:
            yield client
    finally:
        serving.close()


@contextmanager
def _ray(home: Path) -> Iterator[Callable[[str, int], Path]]:
    """Run a Ray cluster; yields what submits the stock training as a job of it and returns the directory of its records."""
    root = Path(__file__).parents[2]
    with served.ray_jobs(home, {"PYTHONPATH": str(root)}) as address:
        from ray.job_submission import JobSubmissionClient

        jobs = JobSubmissionClient(f"http://{address.host}:{address.port}")

        def submit(name: str, steps: int) -> Path:
            out = home / name
            out.mkdir()
            jobs.submit_job(entrypoint=f"{sys.executable} -m tests.benchmarks.stock_training ray-train {out} {steps}")
            return out

        yield submit


def _step_times(client: Client, change: dict[str, Any]) -> list[float]:
    """Run a job, and return when each step of it was completed, by the rank's clock."""
    job = client.wait(client.submit({**SPEC, **change})["id"], timeout_s=PATIENCE_S * 4)
    assert job["state"] == "succeeded", job["message"]
    events = [event for event in client.events(job["id"]) if event["type"] == "metrics" and "train/loss" in event["data"]["values"]]
    return [datetime.fromisoformat(event["at"]).timestamp() for event in events]


def _recorded(out: Path) -> list[tuple[int, float]]:
    """Return the steps that the stock training has on record, and when they were completed."""
    if not (out / "steps").exists():
        return []
    lines = [line.split() for line in (out / "steps").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [(int(step), float(at)) for step, at in lines]


def _seconds(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} s ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}"


if __name__ == "__main__":
    main()
