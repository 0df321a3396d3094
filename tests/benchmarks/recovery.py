"""From `kill -9` of a rank to the next completed step, on the real service with its embedded Ray: `python -m tests.benchmarks.recovery`.

Prints, for each kill and as medians, the seconds from the signal to: the death known, every rank training again, the next step done.
Times are those of the events; controller, Ray and ranks are on one machine.
"""

import os
import signal
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from service.client import Client
from tests.support.serving import Serving, spec, until

KILLS = 5
STEPS = 100_000


def main() -> None:
    """Run it."""
    rows = measure(Path(tempfile.mkdtemp(prefix="bench-recovery-")), KILLS)
    print("| kill | death known | all training | next step |\n|---|---|---|---|")
    for number, row in enumerate(rows):
        print(f"| {number + 1} | " + " | ".join(f"{seconds:.2f}" for seconds in row) + " |")
    print("| median | " + " | ".join(f"{statistics.median(column):.2f}" for column in zip(*rows, strict=True)) + " |")


def measure(home: Path, kills: int) -> list[tuple[float, float, float]]:
    """Return for each kill the seconds to: the death known, every rank training again, the next step done."""
    serving = Serving(home)
    try:
        with serving.start() as client:
            job_id = client.submit(spec(STEPS, retries={"recoveries": kills}))["id"]
            until(lambda: client.job(job_id)["progress"]["step"] >= 20, 60, "the first steps")
            rows = [_one_kill(serving, client, job_id, number) for number in range(kills)]
            client.cancel(job_id)
            return rows
    finally:
        serving.close()


def _one_kill(serving: Serving, client: Client, job_id: str, number: int) -> tuple[float, float, float]:
    until(lambda: client.job(job_id)["state"] == "running" and len(serving.ranks()) == 2, 30, "both ranks")
    time.sleep(1)
    last = max(event["seq"] for event in client.events(job_id))
    killed_at = time.time()
    os.kill(sorted(serving.ranks(), key=lambda process: process.pid)[number % 2].pid, signal.SIGKILL)

    def is_back() -> Any:
        job = client.job(job_id)
        events = list(client.events(job_id, after=str(last)))
        starts = [event for event in events if event["type"] == "state" and event["data"].get("generation") == number + 2]
        back = [event for event in starts if event["data"]["phase"] == "training"]
        if job["state"] != "running" or len(back) < 2:
            return None
        since = max(_at(event) for event in back)
        steps = [_at(event) for event in events if event["type"] == "metrics" and _at(event) > since]
        known = [_at(event) for event in events if event["type"] == "recovery"]
        return (known[0] - killed_at, since - killed_at, steps[0] - killed_at) if steps else None

    found: tuple[float, float, float] = until(is_back, 60, "the recovery")
    return found


def _at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


if __name__ == "__main__":
    main()
