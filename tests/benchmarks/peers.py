"""Like calls to others, each right after ours: Ray's job API, and an MLflow server. One that cannot be started is a line that says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import served
from tests.benchmarks.stock import SPEC
from tests.benchmarks.traffic import Address, Call, ask, load

Line = tuple[str, str, float | None]
"""What was compared, what was found, and how many times as many requests a second ours answers."""
_NUM = 400
_API = "/api/2.0/mlflow"


def _submission(number: int) -> Call:
    return Call("POST", "/v1/jobs", json.dumps(SPEC | {"name": f"like-{number}"}).encode())


async def against_ray(home: Path, ours: Address, ids: list[str]) -> list[Line]:
    """Compare with the REST API of Ray jobs, which starts a process for each."""
    try:
        with served.ray_jobs(home) as ray:
            submit = Call("POST", "/api/jobs/", json.dumps({"entrypoint": "true"}).encode())
            job = (await ask(ray, submit))["submission_id"]
            return [
                await _alike("submit", (ours, _submission, _NUM), ("Ray jobs", ray, lambda _: submit, 8)),
                await _alike("get", (ours, _get(ids), _NUM), ("Ray jobs", ray, lambda _: Call("GET", f"/api/jobs/{job}"), _NUM)),
                await _alike("list", (ours, _list, _NUM), ("Ray jobs with its 9", ray, lambda _: Call("GET", "/api/jobs/"), 100)),
            ]
    except (subprocess.SubprocessError, AssertionError, OSError) as error:
        return [("Ray's job API", f"could not be started or asked: {error}", None)]


async def against_mlflow(home: Path, ours: Address, ids: list[str]) -> list[Line]:
    """Compare with MLflow's REST API: runs are created, read and listed as jobs are."""
    program = os.environ.get("MLFLOW") or shutil.which("mlflow")
    if program is None:
        return [("MLflow", "not installed (MLFLOW names its program)", None)]
    with served.mlflow(program, home) as mlflow:
        create = Call("POST", f"{_API}/runs/create", json.dumps({"experiment_id": "0", "start_time": 1}).encode())
        run = (await ask(mlflow, create))["run"]["info"]["run_id"]
        search = Call("POST", f"{_API}/runs/search", json.dumps({"experiment_ids": ["0"], "max_results": 20}).encode())
        lines = [
            await _alike("submit", (ours, _submission, _NUM), ("MLflow, create a run", mlflow, lambda _: create, _NUM)),
            await _alike(
                "get", (ours, _get(ids), _NUM), ("MLflow, get a run", mlflow, lambda _: Call("GET", f"{_API}/runs/get?run_id={run}"), _NUM)
            ),
            await _alike("list", (ours, _list, _NUM), ("MLflow, search its 401 runs", mlflow, lambda _: search, 100)),
        ]
        found = await load(mlflow, lambda number: _steps(run, number), 40, connections=2)
        steps_per_s = 100 * found.per_s
        return [*lines, ("metrics of MLflow, 100 steps of 3 values a call, 2 connections", f"{steps_per_s:.0f} steps/s", None)]


def _get(ids: list[str]) -> Callable[[int], Call]:
    return lambda number: Call("GET", f"/v1/jobs/{ids[number * 7919 % len(ids)]}")


def _list(number: int) -> Call:
    return Call("GET", "/v1/jobs?limit=20")


def _steps(run: str, number: int) -> Call:
    now = int(time.time() * 1e3)
    steps = range(number * 100, number * 100 + 100)
    rows = [{"key": key, "value": 0.5, "timestamp": now, "step": step} for step in steps for key in ("train/loss", "lr", "throughput")]
    return Call("POST", f"{_API}/runs/log-batch", json.dumps({"run_id": run, "metrics": rows}).encode())


async def _alike(
    what: str, ours: tuple[Address, Callable[[int], Call], int], theirs: tuple[str, Address, Callable[[int], Call], int]
) -> Line:
    mine = await load(*ours, connections=4)
    name, *peer = theirs
    found = await load(*peer, connections=4)
    ratio = mine.per_s / found.per_s
    return f"{what}, 4 connections, against {name}", f"{mine}; theirs {found}: {ratio:.1f}x", ratio
