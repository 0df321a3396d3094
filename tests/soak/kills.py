"""Controllers killed with SIGKILL at random moments, hundreds of times, while jobs are submitted, paused, cancelled and lose ranks.

    python -m tests.soak.kills --kills 1000

Every job that was acknowledged must come to the end that was asked for, once, with every event on record once; no two gangs of one job may
ever live at the same time; no process may be left. A fault ends the run with what was broken, and the home is kept.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.client import Client, Conflict, Unreachable
from service.client.patience import Patience
from tests.support.killing import Killing, killing, spec

SUBMITTERS = 4
LONGEST_LIFE_S = 3.0
AWAY_S = 60.0
ENDS = {"mortal": "succeeded", "whole": "succeeded", "paused": "succeeded", "cancelled": "cancelled", "fails": "failed"}


@dataclass
class Report:
    """What a run did."""

    kills: int = 0
    jobs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    serving_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    def __str__(self) -> str:
        jobs = ", ".join(f"{number} {script}" for script, number in self.jobs.items())
        again = sorted(self.serving_s)
        return (
            f"{self.kills} kills in {self.took_s:.0f} s; {sum(self.jobs.values())} jobs ({jobs}) all ended as asked; serving again after "
            f"{statistics.median(again):.2f} s (median), {again[-1]:.2f} s (longest)"
        )


def run(directory: Path, kills: int, seed: int = 0) -> Report:
    """Kill controllers under load; return the report. Raises AssertionError where anything was lost, doubled or left behind."""
    began, report, is_over = time.monotonic(), Report(), threading.Event()
    with killing(directory) as world, ThreadPoolExecutor(SUBMITTERS) as pool:
        world.start()
        submitters = [pool.submit(_submit, world, report, is_over, seed * 1000 + number) for number in range(SUBMITTERS)]
        try:
            _kill(world, report, kills, random.Random(seed), submitters)
        finally:
            is_over.set()
        for submitter in submitters:
            submitter.result()
        assert world.host.violations == []
        assert world.host.named() == []
        assert world.host.rooms() == []
        made = [job["name"] for job in world.client.jobs()]
        assert len(made) == len(set(made)) == sum(report.jobs.values())
    report.serving_s = world.serving_s
    report.took_s = time.monotonic() - began
    return report


def _kill(world: Killing, report: Report, kills: int, moments: random.Random, submitters: "list[Future[None]]") -> None:
    while report.kills < kills and not any(submitter.done() for submitter in submitters):
        # Long enough to form a gang, where the machine is slow: else no job would ever come to its end.
        time.sleep(moments.uniform(0, max(LONGEST_LIFE_S, 3 * statistics.median(world.serving_s))))
        world.kill()
        report.kills += 1
        # As many die before they serve: while they read the database, or connect.
        while moments.random() < 0.5:
            world.start(is_awaited=False)
            time.sleep(moments.uniform(0, 0.6))
            world.kill()
            report.kills += 1
        world.start()


def _submit(world: Killing, report: Report, is_over: threading.Event, seed: int) -> None:
    """Submit one job after the other and see each to its end."""
    chances = random.Random(seed)
    number = 0
    while not is_over.is_set():
        number += 1
        script = chances.choice(list(ENDS))
        with Client(home=world.home, patience=Patience(tries=4, first_wait_s=0.05)) as client:
            _live(world, client, script, f"{script}-{seed}-{number}", chances)
        report.jobs[script] += 1


def _live(world: Killing, client: Client, script: str, name: str, chances: random.Random) -> None:
    def ask(call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return call()
            except Unreachable:
                assert time.monotonic() < deadline, "no controller came back"

    asked = spec(script, {"paused": 40, "cancelled": 1000}.get(script, 9), name=name)
    job_id = ask(lambda: client.submit(asked, idempotency_key=name))["id"]
    time.sleep(chances.uniform(0, 1.0))
    if script == "cancelled":
        ask(lambda: client.cancel(job_id))
    if script == "paused":
        _pause(lambda: ask(lambda: client.pause(job_id)))
        while ask(lambda: client.job(job_id))["state"] == "pausing":
            time.sleep(0.05)
        _pause(lambda: ask(lambda: client.resume(job_id)))
    world.ended(job_id, ENDS[script], ask, client)


def _pause(call: Callable[[], Any]) -> None:
    try:
        call()
    except Conflict as error:
        if error.code not in {"job_already_ended", "job_not_paused"}:  # the job was quicker
            raise


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="syncbn-kills-"))
    print(f"home and log: {directory}/home", file=sys.stderr)
    print(run(directory, chosen.kills, chosen.seed))


if __name__ == "__main__":
    main()
