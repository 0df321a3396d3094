"""The single checks of `syncbn doctor`: each looks at one thing and returns one finding, and none changes anything."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from service.cli.home import holder
from service.client import Client, Denied, ServiceError, Unreachable
from service.settings import Settings

MIN_PYTHON = (3, 11)
MIN_RAY = (2, 54)
MIN_DISK_BYTES = 2 * 2**30
MIN_MEMORY_BYTES = 2**30
MIN_SHM_BYTES = 128 * 2**20
TORCH_TIMEOUT_S = 60


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it unless it is ok."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def python_version(_: Settings) -> Finding:
    """Compare the interpreter's version."""
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} at {sys.executable}"
    if sys.version_info[:2] < MIN_PYTHON:
        return Finding("python", "fail", found, "install Python 3.11 or newer and make the virtual environment again")
    return Finding("python", "ok", found)


def torch(_: Settings) -> Finding:
    """Load torch where the ranks load it: in another process."""
    program = "import torch; print(torch.__version__, 'CUDA', torch.version.cuda, torch.cuda.device_count())"
    remedy = "pip install -c constraints.txt torch"
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Finding("torch", "warn", f"loading took more than {TORCH_TIMEOUT_S} s", "look for a slow disk or a machine under load")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("torch", "fail", last, remedy)
    return Finding("torch", "ok", done.stdout.strip())


def ray(_: Settings) -> Finding:
    """Compare Ray's version."""
    remedy = f"pip install -c constraints.txt 'ray[default]>={MIN_RAY[0]}.{MIN_RAY[1]}'"
    try:
        found = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Finding("ray", "fail", "not installed", remedy)
    if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < MIN_RAY:
        return Finding("ray", "fail", found, remedy)
    return Finding("ray", "ok", found)


def home(settings: Settings) -> Finding:
    """Write a file into the home, or where it would be made."""
    place = settings.home
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding("home", "fail", f"{settings.home}: {error.strerror}", "give --home or SYNCBN_HOME a directory that you can write to")
    return Finding("home", "ok", str(settings.home))


def disk(settings: Settings) -> Finding:
    """Look for room for checkpoints."""
    place = settings.storage_path
    if place is None:
        return Finding("disk", "ok", f"checkpoints go to {settings.storage_url}")
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free at {place}"
    if free < MIN_DISK_BYTES:
        return Finding("disk", "warn", found, "free some, or give --storage a directory on a larger disk; Ray stops at 95 % full")
    return Finding("disk", "ok", found)


def memory(_: Settings) -> Finding:
    """Look for room for ranks."""
    free = psutil.virtual_memory().available
    found = f"{free / 2**30:.1f} GiB available"
    if free < MIN_MEMORY_BYTES:
        return Finding("memory", "warn", found, "every rank needs about 0.5 GiB besides its model; end other programs")
    return Finding("memory", "ok", found)


def shared_memory(_: Settings) -> Finding:
    """Look for room for Ray's object store."""
    place = Path("/dev/shm")  # noqa: S108 - the one that Ray uses
    if not place.is_dir():
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    free = shutil.disk_usage(place).free
    found = f"{free / 2**20:.0f} MiB free at {place}"
    if free < MIN_SHM_BYTES:
        return Finding("shared memory", "warn", found, "run the container with --shm-size=1g; Ray falls back to slow files otherwise")
    return Finding("shared memory", "ok", found)


def port(settings: Settings) -> Finding:
    """Look whether `syncbn serve` could listen."""
    place = f"{settings.host}:{settings.port}"
    if holder(settings.files) is not None:
        return Finding("port", "ok", "this home's controller is running")
    try:
        with socket.create_server((settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET):
            return Finding("port", "ok", f"{place} is free")
    except OSError as error:
        return Finding("port", "fail", f"{place}: {os.strerror(error.errno or 0)}", "choose another with --port or SYNCBN_PORT")


def host_name(_: Settings) -> Finding:
    """Resolve this machine's name: ranks on several machines meet at the address of Ray, not of the name, but other tools use it."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding("host name", "warn", f"{name} does not resolve", f"add a line for {name} to /etc/hosts")
    return Finding("host name", "ok", f"{name} is {address}")


def loopback(_: Settings) -> Finding:
    """Open a connection on the loopback: gloo and the embedded Ray need it."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
            pass
    except OSError as error:
        return Finding("loopback", "fail", str(error), "bring the interface lo up, and let no firewall filter it")
    return Finding("loopback", "ok", "127.0.0.1 answers")


def controller(_: Settings) -> Finding:
    """Ask the controller something that needs the token."""
    try:
        with Client(timeout_s=5) as client:
            list(client.jobs(limit=1))
            return Finding("controller", "ok", f"{client.url} answers and admits the token")
    except Unreachable as error:
        return Finding("controller", "warn", str(error), "start one with `syncbn serve`, or set SYNCBN_URL")
    except Denied as error:
        return Finding("controller", "fail", error.detail, "set SYNCBN_TOKEN, or unset it to use the token of the home")
    except ServiceError as error:
        return Finding("controller", "fail", error.detail, "see the controller's log")


CHECKS: tuple[Callable[[Settings], Finding], ...] = (
    python_version, torch, ray, home, disk, memory, shared_memory, port, host_name, loopback, controller,
)  # fmt: skip
