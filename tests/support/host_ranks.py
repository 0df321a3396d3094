"""Run whole jobs on hosts, without Ray: each rank a process of its own, on its host's address. As a program, one such rank.

Owns: starting the ranks and gathering what they said. Every wait is bounded.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import Host
from tests.support.jobs import JOB, MARKER, Faults, RankRun, run_one_rank
from worker.contract import JobSpec


@dataclass(frozen=True)
class HostJob:
    """A job under way."""

    directory: Path
    processes: list[subprocess.Popen[bytes]]

    def ends(self, timeout_s: float) -> list[RankRun]:
        """Wait until every process is gone and return what each rank said."""
        deadline = time.monotonic() + timeout_s
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"rank {rank} is still there after {timeout_s:g} s:\n{self._log(rank)}") from None
        return [self._said(rank) for rank in range(len(self.processes))]

    def _said(self, rank: int) -> RankRun:
        assert self.processes[rank].returncode == 0, self._log(rank)
        return RankRun(*pickle.loads((self.directory / f"said-{rank}").read_bytes()))

    def _log(self, rank: int) -> str:
        return (self.directory / f"log-{rank}").read_text(errors="replace")[-3000:]


def start_job(
    hosts: Sequence[Host],
    spec: JobSpec,
    storage: Path,
    environment: Mapping[str, str] | None = None,
    *,
    is_interface_chosen: bool = True,
) -> HostJob:
    """Start one rank for each entry of `hosts`, on that host. Gloo chooses its interface itself where it is not chosen for it."""
    (storage / MARKER).write_text("here")
    directory = storage / f"ranks-{uuid.uuid4().hex}"
    directory.mkdir()
    common = {"job_id": JOB, "attempt": 1, "fence": 1, "spec": spec, "storage": str(storage), "marker": MARKER}
    processes = []
    for rank, host in enumerate(hosts):
        told = (rank, len(hosts), common, str(directory / "port"), Faults())
        (directory / f"told-{rank}").write_bytes(pickle.dumps((is_interface_chosen, host.address, told)))
        command = [sys.executable, "-m", "tests.support.host_ranks", directory, str(rank)]
        processes.append(host.start(command, directory / f"log-{rank}", {"OMP_NUM_THREADS": "1", **(environment or {})}))
    return HostJob(directory, processes)


def main(directory: Path, rank: str) -> None:
    """Be one rank."""
    is_interface_chosen, node_ip, told = pickle.loads((directory / f"told-{rank}").read_bytes())
    if not is_interface_chosen:
        import worker.meeting

        worker.meeting.export_interface = lambda name: None
    said = run_one_rank(*told, node_ip=node_ip)
    (directory / f"said-{rank}").write_bytes(pickle.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
