"""Servers that are measured, each a process of its own on loopback: ours, and what it is compared with. Ends what it starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import psutil

from service.processes import end_marked
from tests.benchmarks.traffic import Address
from tests.support.serving import until

START_S = 90.0
MARKER = "SYNCBN_BENCHMARK"
_LIMITS = {"SYNCBN_MAX_REQUESTS_PER_S": "1000000", "SYNCBN_MAX_STREAMS": "5000", "SYNCBN_MAX_STREAMS_PER_TOKEN": "5000"}
_NGINX = """daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/nginx.log;
events {{ }}
http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
uwsgi_temp_path {home}; scgi_temp_path {home}; server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }} }}
{user}"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def syncbn(home: Path, module: str = "service.cli.main") -> Iterator[tuple[Address, psutil.Process]]:
    """Run `syncbn serve` on a home; no Ray answers at its address, so that jobs stay queued."""
    (home / "controller.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", module, "serve", "--home", str(home), "--port", "0", "--ray-address", "127.0.0.1:1"]
    with _running(command, home / "serve.log", os.environ | _LIMITS) as process:
        _until(process, (home / "controller.json").exists, home / "serve.log")
        port = int(json.loads((home / "controller.json").read_text())["url"].rpartition(":")[2])
        token = (home / "token").read_text().strip()
        yield Address("127.0.0.1", port, (("Authorization", f"Bearer {token}"),)), process


@contextmanager
def static(root: Path, home: Path) -> Iterator[tuple[str, Address]]:
    """Serve a directory: by nginx where it is (or at NGINX), else by uvicorn and Starlette. Yields its name too."""
    port, nginx = free_port(), os.environ.get("NGINX") or shutil.which("nginx")
    if nginx:
        user = "user root;" if os.geteuid() == 0 else ""
        (home / "nginx.conf").write_text(_NGINX.format(home=home, port=port, root=root, user=user))
        name, command = "nginx, 1 worker, sendfile", [nginx, "-p", str(home), "-c", str(home / "nginx.conf"), "-e", str(home / "nginx.log")]
    else:
        program = (
            f"import uvicorn; from starlette.staticfiles import StaticFiles; uvicorn.run(StaticFiles(directory={str(root)!r}), port={port})"
        )
        name, command = "uvicorn and Starlette's StaticFiles", [sys.executable, "-c", program]
    with _running(command, home / "static.log", os.environ) as process:
        _until(process, lambda: _listens("127.0.0.1", port), home / "static.log")
        yield name, Address("127.0.0.1", port)


@contextmanager
def ray_jobs(home: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[Address]:
    """Run a Ray head with its dashboard, whose job API needs it, and with more in its environment."""
    port, mark, host = free_port(), f"{os.getpid()}", "127.0.0.2"
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", f"--node-ip-address={host}", "--num-cpus=8",
        "--object-store-memory=100000000", f"--temp-dir={home}/ray", "--include-dashboard=true", f"--dashboard-host={host}",
        f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats",
    ]  # fmt: skip
    environment = os.environ | dict(environment) | {MARKER: mark, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        with (home / "ray.log").open("wb") as log:
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True, timeout=START_S, start_new_session=True)
        until(lambda: _listens(host, port), START_S, "Ray's dashboard to listen")
        yield Address(host, port)
    finally:
        end_marked(MARKER, mark, 30.0)


@contextmanager
def mlflow(program: str, home: Path) -> Iterator[Address]:
    """Run an MLflow server with as many worker processes as it takes by itself, over SQLite."""
    port = free_port()
    command = [program, "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--port", str(port), "--host", "127.0.0.1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with _running([*command, "--default-artifact-root", f"{home}/mlflow"], home / "mlflow.log", environment) as process:
        _until(process, lambda: _listens("127.0.0.1", port), home / "mlflow.log")
        yield Address("127.0.0.1", port)


@contextmanager
def _running(command: list[str], log: Path, environment) -> Iterator[psutil.Process]:
    """Run a server in a process group of its own, and end all of the group."""
    with log.open("ab") as output:
        process = psutil.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(psutil.TimeoutExpired):
            process.wait(20)
        _end_group(process.pid)


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    time.sleep(0.1)


def _until(process: psutil.Popen, look, log: Path) -> None:
    until(lambda: look() or process.poll() is not None, START_S, "a server to listen")
    assert process.poll() is None, log.read_text()[-3000:]


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
