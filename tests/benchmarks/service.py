"""The service under load, beside others that do like work: `make bench-service`, or `python -m tests.benchmarks.service`.

Everything is a real process on loopback; this one makes the load. MLFLOW and NGINX name programs that are not on the path. Owns what is
measured and what was aimed at; `traffic` measures, `served` starts, `stock` and `talking` prepare, `peers` compares.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import psutil
import uvloop

from service.store.store import Store
from tests.benchmarks import served
from tests.benchmarks.peers import against_mlflow, against_ray
from tests.benchmarks.stock import FILE, SPEC, STEP, fill, write_checkpoint
from tests.benchmarks.traffic import Address, Call, Readers, ask, download, load, quantile


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    jobs: int = 100_000
    submissions: int = 10_000
    calls: int = 2_000
    steps: int = 20_000
    readers: int = 1_000
    told: int = 50
    file_bytes: int = 2**30
    rounds: int = 3
    hour: int = 7_200
    """Requests of an hour at two a second."""
    has_peers: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    found: str
    target: str = ""
    is_met: bool | None = None

    def __str__(self) -> str:
        verdict = "" if self.is_met is None else "met" if self.is_met else "MISSED"
        return f"| {self.what} | {self.found} | {self.target} | {verdict} |"


def main() -> None:
    """Print the table."""
    before = os.getloadavg()
    print("| what | syncbn | target | |\n|---|---|---|---|", flush=True)
    run(Sizes())
    print(f"\nload average {before[0]:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores")


def run(sizes: Sizes) -> list[Row]:
    """Measure everything; print and return the rows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * sizes.readers + 1_000)), hard))
    rows: list[Row] = []

    def say(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        stored, told = Path(name) / "stored", Path(name) / "told"
        stored.mkdir()
        told.mkdir()
        uvloop.run(_stored(stored, sizes, say))
        uvloop.run(_told(told, sizes, say))
    return rows


async def _stored(home: Path, sizes: Sizes, say: Callable[[Row], None]) -> None:
    """What is asked of a controller with many jobs on the books."""
    async with await Store.open(f"sqlite:///{home}/syncbn.db") as store:
        ids = await fill(store, sizes.jobs)
    file = await asyncio.to_thread(write_checkpoint, home / "storage", ids[-2], sizes.file_bytes)
    with served.syncbn(home) as (address, process):
        await _requests(address, ids, sizes, say)
        say(await _download(home, file, (address, process), ids[-2], sizes))
        if sizes.has_peers:
            for against in (against_ray, against_mlflow):
                for what, found, ratio in await against(home, address, ids):
                    say(Row(what, found, "3x", None if ratio is None else ratio >= 3))
        say(await _hour(address, process, ids, sizes))


async def _requests(address: Address, ids: list[str], sizes: Sizes, say: Callable[[Row], None]) -> None:
    def get(number: int) -> Call:
        return Call("GET", f"/v1/jobs/{ids[number * 7919 % len(ids)]}")

    def page(number: int) -> Call:
        return Call("GET", f"/v1/jobs?limit=20&after={ids[len(ids) // 20 + number % (len(ids) // 20 or 1)]}")

    def labelled(number: int) -> Call:
        return Call("GET", f"/v1/jobs?limit=20&state=succeeded&label={quote('team=vision')}&after={ids[-1 - number % (len(ids) // 2)]}")

    await load(address, get, sizes.calls // 10)
    say(Row("get, 8 connections", str(await load(address, get, sizes.calls))))
    found = await load(address, get, sizes.calls, per_s=200)
    say(Row("get, 200 a second, from when it was due", str(found), "p99 <= 20 ms", found.ms(99) <= 20))
    for what, call in (("20 from 95 % deep", page), ("by state and label", labelled)):
        found = await load(address, call, sizes.calls // 4, connections=2)
        say(Row(f"list of {len(ids):,} jobs, {what}, 2 connections", str(found), "p99 <= 50 ms", found.ms(99) <= 50))
    found = await load(address, submission, sizes.submissions, connections=16)
    is_met = len(found.seconds) - found.num_refused == sizes.submissions and found.wall_s <= 60
    text = f"{len(found.seconds):,} in {found.wall_s:.1f} s; {found}"
    say(Row(f"submit {sizes.submissions:,}, each on the disk when answered, 16 connections", text, "10,000 in 60 s", is_met))


def submission(number: int) -> Call:
    """Return the submission of a job."""
    return Call("POST", "/v1/jobs", json.dumps(SPEC | {"name": f"benchmark-{number}"}).encode())


async def _download(home: Path, file: Path, ours: tuple[Address, psutil.Process], job_id: str, sizes: Sizes) -> Row:
    """Fetch the same file from both, in turns; look at the memory of ours meanwhile."""
    address, process = ours
    path = f"/v1/jobs/{job_id}/checkpoints/{STEP}/files/{FILE}"
    before = peak = process.memory_info().rss
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with served.static(file.parent, home) as (name, static):
        for _ in range(sizes.rounds):
            for whose, where, at in (("ours", address, path), ("theirs", static, f"/{FILE}")):
                fetching = asyncio.create_task(asyncio.to_thread(download, where, at))
                while not fetching.done():
                    await asyncio.wait([fetching], timeout=0.05)
                    peak = max(peak, process.memory_info().rss)
                size, seconds = await fetching
                speeds[whose].append(size / seconds / 1e6)
    mine, theirs = statistics.median(speeds["ours"]), statistics.median(speeds["theirs"])
    text = f"{mine:.0f} MB/s against {theirs:.0f}: {mine / theirs:.2f}; memory +{(peak - before) / 1e6:.0f} MB"
    return Row(f"download of {sizes.file_bytes / 1e6:.0f} MB, verified on the way, against {name}", text, "0.8", mine / theirs >= 0.8)


async def _hour(address: Address, process: psutil.Process, ids: list[str], sizes: Sizes) -> Row:
    def any_call(number: int) -> Call:
        job = ids[number * 7919 % len(ids)]
        paths = (f"/{job}", f"/{job}/events", f"/{job}/metrics", f"?after={job}", f"/{job}/checkpoints", f"/{job}/logs")
        return submission(number) if number % 50 == 0 else Call("GET", "/v1/jobs" + paths[number % len(paths)])

    memory = []
    for _ in range(4):
        await load(address, any_call, sizes.hour // 4)
        memory.append(process.memory_info().rss / 1e6)
    text = " -> ".join(f"{one:.0f}" for one in memory) + " MB after each quarter"
    grown = max(later - earlier for earlier, later in pairwise(memory[1:]))
    return Row(f"memory over {sizes.hour:,} requests, an hour at two a second", text, "flat (+5 MB a quarter)", grown <= 5)


async def _told(home: Path, sizes: Sizes, say: Callable[[Row], None]) -> None:
    """What ranks say, and who listens."""
    with served.syncbn(home, "tests.benchmarks.talking") as (address, _):
        name = f"talk-{sizes.steps}-0"
        job_id = await _running(address, name)
        began = time.perf_counter()
        (home / name).touch()
        await _reached(address, job_id, "succeeded")
        per_s = 2 * sizes.steps / (time.perf_counter() - began)
        text = f"{per_s:.0f} events/s"
        say(Row("events of one rank said at once, a metrics event of 3 values and a line of log a step", text, "2,000/s", per_s >= 2000))
        say(await _readers(address, home, sizes))


async def _readers(address: Address, home: Path, sizes: Sizes) -> Row:
    name = f"talk-{sizes.told}-10"
    job_id = await _running(address, name)
    readers, path = Readers(), f"/v1/jobs/{job_id}/events"
    began = time.perf_counter()
    tasks = [asyncio.create_task(readers.read(address, path, number % 20 == 0, b"event: end")) for number in range(sizes.readers)]
    while readers.num_open < sizes.readers:
        await asyncio.sleep(0.02)
        assert time.perf_counter() < began + 60, f"{readers.num_open} of {sizes.readers} streams are open"
    opened_s, told = time.perf_counter() - began, time.perf_counter()
    readers.delays_s.clear()
    (home / name).touch()
    await asyncio.wait_for(asyncio.gather(*tasks), 120)
    per_s = readers.num_events / (time.perf_counter() - told)
    delays = f"from said to read p50 {quantile(readers.delays_s, 50) * 1e3:.0f} ms, p99 {quantile(readers.delays_s, 99) * 1e3:.0f} ms"
    text = f"open after {opened_s:.1f} s; {per_s:.0f} events/s to them in all, {delays}"
    return Row(f"{sizes.readers:,} SSE readers of one job that says 20 events a second", text)


async def _running(address: Address, name: str) -> str:
    job_id = (await ask(address, Call("POST", "/v1/jobs", json.dumps(SPEC | {"name": name}).encode())))["id"]
    await _reached(address, job_id, "running")
    return job_id


async def _reached(address: Address, job_id: str, state: str) -> None:
    deadline = time.monotonic() + 120
    while (await ask(address, Call("GET", f"/v1/jobs/{job_id}")))["state"] != state:
        assert time.monotonic() < deadline, f"waited 120 s for {job_id} to be {state}"
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    main()
