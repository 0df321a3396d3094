"""A cluster on two hosts: Ray's head and the controller on the first, a worker node on the second. Asked as its users ask it, by the CLI.

Owns: how each of them is started, with Ray's token as on a real network, and what is left running where.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import psutil

from tests.support.hosts import Host
from tests.support.serving import until

PORT = 6379
START_TIMEOUT_S = 90.0
CLI = [sys.executable, "-m", "service.cli.main"]


class HostCluster:
    """Use as a context manager inside `two_hosts`, which ends the processes. The shared storage is `storage`."""

    def __init__(self, directory: Path, head: Host) -> None:
        self.head = head
        self.storage = directory / "storage"
        self._directory = directory
        # Short, because Ray makes Unix sockets below it.
        self._temporary = tempfile.mkdtemp(prefix="syncbn-", dir="/tmp")
        token = directory / "ray-token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self._environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",
            # A host whose processes are gone is known dead after 3 s instead of 15; one that is slow has its 10 s as ever.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "SYNCBN_HOME": str(directory / "home"),
            "SYNCBN_STORAGE": str(self.storage),
            "SYNCBN_RAY_ADDRESS": f"{head.address}:{PORT}",
            "SYNCBN_PORT": "0",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def start_head(self, cpus: int) -> None:
        """Start Ray's head."""
        more = [f"--port={PORT}", f"--temp-dir={self._temporary}", "--include-dashboard=false", "--no-monitor"]
        self._start_ray(self.head, cpus, "--head", *more)

    def join(self, host: Host, cpus: int) -> None:
        """Start a node of the cluster on another host."""
        self._start_ray(host, cpus, f"--address={self.head.address}:{PORT}")

    def serve(self) -> None:
        """Start the controller; return when it listens."""
        controller = self._directory / "home" / "controller.json"
        log = self._directory / "serve.log"
        process = self.head.start([*CLI, "serve"], log, self._environment)
        until(lambda: controller.exists() or process.poll() is not None, START_TIMEOUT_S, "the controller to listen")
        assert process.poll() is None, log.read_text()[-3000:]

    def ask(self, *arguments: str | Path, status: int = 0, timeout_s: float = 60.0) -> Any:
        """Run a command of the CLI on the head's host, which must end with this exit status, and return what it prints as JSON."""
        answer, log = self._directory / "answer", self._directory / "cli.log"
        answer.unlink(missing_ok=True)
        command = ["sh", "-c", 'answer=$0; exec "$@" > "$answer"', answer, *CLI, *arguments, "--json"]
        assert self.head.run(command, log, self._environment, timeout_s) == status, log.read_text()[-3000:] + answer.read_text()[-3000:]
        return json.loads(answer.read_text())

    def checkpoints(self, job_id: str) -> list[Path]:
        """Return what the job has published: a sign of its progress that needs no network."""
        return list((self.storage / "jobs" / job_id / "checkpoints").glob("step-*/manifest.json"))

    def _start_ray(self, host: Host, cpus: int, *more: str) -> None:
        log = self._directory / f"ray-{host.name}.log"
        common = [f"--node-ip-address={host.address}", f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *common, "--include-log-monitor=false", *more]
        assert host.run(command, log, self._environment, START_TIMEOUT_S) == 0, log.read_text()[-3000:]


def ranks_on(host: Host) -> list[int]:
    """Return the pids of rank actors on a host."""
    found = []
    for pid in host.pids():
        try:
            if "RankActor" in psutil.Process(pid).name():
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found
