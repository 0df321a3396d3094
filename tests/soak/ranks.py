"""Ranks killed hundreds of times, in jobs whose results must equal the undisturbed ones in every bit: `make soak-ranks`.

Prints a line per job with its seed, and ends at the first job that ends otherwise, or that took longer than LONGEST_RECOVERY_S to go on
after a kill: `python -m tests.soak.ranks --kills 20 --seed SEED --kind KIND` does that one again.
"""

import argparse
import functools
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.recoveries import Left, assert_undisturbed, kill_now_and_then, run_job

KILLS_PER_JOB = 20
LONGEST_RECOVERY_S = 100.0
"""From a recovery event to the first rank at work again, also where further ranks die meanwhile, on a machine with other work: no rank
waits until a time limit of meetings (120 s) or of collectives (300 s)."""
TIMEOUT_S = 1200.0
# Half of the kills fall into the recovery from the one before.
PAUSES_S = ((0.02, 0.5), (0.5, 6.0))
KINDS: dict[str, dict[str, Any]] = {
    "all": {"steps": 150},
    "groups": {"steps": 150, "norm": {"group_size": 2}, "resources": {"workers": 4}},
    "average": {"steps": 150, "average": {"kind": "ema"}, "accumulate": 2, "resources": {"workers": 2}},
}
"""What is different about the jobs: statistics over all ranks, over pairs of ranks, and an averaged model with gradients in two parts."""


def main() -> None:
    """Run it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the first job; later ones count on")
    options.add_argument("--kind", choices=KINDS, action="append", help="default: all in turn")
    given = options.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    kinds = given.kind or list(KINDS)
    undisturbed = {kind: run_job(_folder(), timeout_s=TIMEOUT_S, **KINDS[kind]) for kind in kinds}
    killed, number = 0, 0
    while killed < given.kills:
        kind = kinds[number % len(kinds)]
        killed += _one_job(kind, given.seed + number, min(KILLS_PER_JOB, given.kills - killed), undisturbed[kind])
        number += 1
    print(f"{killed} kills in {number} jobs; every job ended as if nothing had happened")


def _one_job(kind: str, seed: int, num_kills: int, expected: Left) -> int:
    """Run one job, compare it with the undisturbed one, and return how many ranks were killed."""
    killed: list[int] = []
    print(f"--seed {seed} --kind {kind}: {num_kills} kills")
    began = time.monotonic()
    disturb = functools.partial(kill_now_and_then, seed=seed, number=num_kills, pauses_s=PAUSES_S, killed=killed)
    left = run_job(_folder(), disturb=disturb, timeout_s=TIMEOUT_S, retries={"recoveries": 1000, "restarts": 1000}, **KINDS[kind])
    longest_s, took_s = left.longest_recovery_s(), time.monotonic() - began
    print(
        f"    {len(killed)} killed, {len(left.recoveries())} recoveries, {left.job.attempt} attempts, longest recovery {longest_s:.1f} s,"
        f" {took_s:.0f} s in all"
    )
    assert_undisturbed(left, expected, is_restart_possible=True)
    assert longest_s <= LONGEST_RECOVERY_S
    return len(killed)


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="soak-ranks-"))


if __name__ == "__main__":
    main()
