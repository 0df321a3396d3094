"""How long training stands still while a job grows, on the real service with its embedded Ray: `python -m tests.benchmarks.growth`.

Prints, for each time that a job of one worker gets a second one, the seconds between the last step of one rank and the first of two, and
those of a usual step. Times are those of the events; controller, Ray and ranks are on one machine.
"""

import statistics
import tempfile
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from service.client import Client
from tests.support.serving import Serving, spec, until

TIMES = 3
STEPS = 100_000


def main() -> None:
    """Run it."""
    rows = measure(Path(tempfile.mkdtemp(prefix="bench-growth-")), TIMES)
    print("| growth | stands still | usual step before |\n|---|---|---|")
    for number, row in enumerate(rows):
        print(f"| {number + 1} | " + " | ".join(f"{seconds:.3f}" for seconds in row) + " |")
    print("| median | " + " | ".join(f"{statistics.median(column):.3f}" for column in zip(*rows, strict=True)) + " |")


def measure(home: Path, times: int) -> list[tuple[float, float]]:
    """Return for each growth from one worker to two the seconds without a step, and those that a step took before."""
    serving = Serving(home)
    try:
        with serving.start() as client:
            job_id = client.submit(spec(STEPS, resources={"workers": 1}))["id"]
            _trains_on(client, job_id, 1)
            rows = [_one_growth(client, job_id) for _ in range(times)]
            client.cancel(job_id)
            return rows
    finally:
        serving.close()


def _one_growth(client: Client, job_id: str) -> tuple[float, float]:
    asked_after = max(event["seq"] for event in client.events(job_id))
    client.resize(job_id, 2)
    _trains_on(client, job_id, 2)
    events = list(client.events(job_id, after=str(max(asked_after - 50, 0))))
    [resize] = [event for event in events if event["type"] == "resize" and event["seq"] > asked_after]
    steps = [_at(event) for event in events if event["type"] == "metrics" and "train/loss" in event["data"]["values"]]
    pauses = [(later - earlier, earlier) for earlier, later in pairwise(steps)]
    # The pause at the resize is the longest of those that end after it.
    still = max(pause for pause, since in pauses if since + pause > _at(resize))
    usual = statistics.median(pause for pause, since in pauses if since + pause < _at(resize))
    client.resize(job_id, 1)
    _trains_on(client, job_id, 1)
    return still, usual


def _trains_on(client: Client, job_id: str, workers: int) -> None:
    until(lambda: client.job(job_id)["world_size"] == workers and client.job(job_id)["state"] == "running", 120, f"{workers} workers")
    step = client.job(job_id)["progress"]["step"]
    until(lambda: client.job(job_id)["progress"]["step"] >= step + 10, 120, "some steps")


def _at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


if __name__ == "__main__":
    main()
