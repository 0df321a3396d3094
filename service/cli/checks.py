"""The checks of `syncbn doctor` on this machine: each looks at one thing and returns one finding, and none changes anything."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from service.cli.finding import Finding
from service.cli.home import holder
from service.settings import Settings

MIN_PYTHON = (3, 11)
MIN_RAY = (2, 54)
MIN_DISK_BYTES = 2 * 2**30
MIN_MEMORY_BYTES = 2**30
MIN_SHM_BYTES = 128 * 2**20
TORCH_TIMEOUT_S = 60


def python_version(_: Settings) -> Finding:
    """Compare the interpreter's version."""
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} at {sys.executable}"
    if sys.version_info[:2] < MIN_PYTHON:
        return Finding("python", "fail", found, "install Python 3.11 or newer and make the virtual environment again")
    return Finding("python", "ok", found)


def torch(_: Settings) -> Finding:
    """Load torch where the ranks load it: in another process."""
    program = "import torch; print(torch.__version__ + (f' for CUDA {torch.version.cuda}' if torch.version.cuda else ', no CUDA'))"
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
    try:
        with tempfile.TemporaryFile(dir=_existing(settings.home)):
            pass
    except OSError as error:
        return Finding("home", "fail", f"{settings.home}: {error.strerror}", "give --home or SYNCBN_HOME a directory that you can write to")
    return Finding("home", "ok", str(settings.home))


def disk(settings: Settings) -> Finding:
    """Look for room where the database and the checkpoints are."""
    places = {"home": settings.home} if settings.storage_path is None else {"home": settings.home, "storage": settings.storage_path}
    free = {name: shutil.disk_usage(_existing(place)).free for name, place in places.items()}
    found = ", ".join(f"{num_bytes / 2**30:.1f} GiB free at the {name} {places[name]}" for name, num_bytes in free.items())
    if min(free.values()) < MIN_DISK_BYTES:
        remedy = (
            "free some, or give --home and --storage directories on a larger disk; a full one ends training and Ray, which stops at 95 %"
        )
        return Finding("disk", "warn", found, remedy)
    return Finding("disk", "ok", found)


def _existing(place: Path) -> Path:
    """Return the nearest directory that is there already."""
    while not place.exists():
        place = place.parent
    return place


def gpu(_: Settings) -> Finding:
    """Compare the GPUs that the driver knows with those that torch sees."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Finding("gpu", "ok", "no nvidia-smi: no NVIDIA GPU here")
    listed, seen = _output([command, "-L"]), _output([sys.executable, "-c", _SEEN])
    if listed is None:
        remedy = "run nvidia-smi; where it fails, the driver is to be mended or loaded anew"
        return Finding("gpu", "warn", "nvidia-smi does not answer", remedy)
    num_there = sum(line.startswith("GPU ") for line in listed.splitlines())
    if seen is None:
        return Finding("gpu", "warn", f"nvidia-smi lists {num_there}, torch does not load", "see the line about torch")
    cuda, num_seen, mask = seen.rstrip("\n").split(" ", 2)
    found = f"nvidia-smi lists {num_there}, torch sees {num_seen}"
    return Finding("gpu", "ok", found) if int(num_seen) >= num_there else _unseen_gpu(found, cuda, mask)


def _unseen_gpu(found: str, cuda: str, mask: str) -> Finding:
    """Say why torch sees fewer GPUs than there are: the CUDA it is built for, None for none, and CUDA_VISIBLE_DEVICES tell."""
    if cuda == "None":
        return Finding("gpu", "warn", f"{found}: it is built without CUDA", "install a CUDA build: pip install --force-reinstall torch")
    if mask:
        return Finding("gpu", "warn", f"{found}: CUDA_VISIBLE_DEVICES is {mask}", "unset CUDA_VISIBLE_DEVICES, or list all GPUs in it")
    return Finding("gpu", "warn", f"{found}, built for CUDA {cuda}", "upgrade the driver, or install a torch that is built for its CUDA")


_SEEN = "import os, torch; print(torch.version.cuda, torch.cuda.device_count(), os.environ.get('CUDA_VISIBLE_DEVICES', ''))"


def _output(command: list[str]) -> str | None:
    """Return what a program prints, None where it fails or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None


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
        who = _listener(settings.port)
        found = f"{place}: {os.strerror(error.errno or 0)}" + (f", by {who}" if who else "")
        return Finding("port", "fail", found, "end that program, or choose another port with --port or SYNCBN_PORT")


def _listener(number: int) -> str:
    """Return which program listens on a port, empty where that is not for our eyes."""
    try:
        listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.pid]
        pids = {one.pid or 0 for one in listening if one.laddr and one.laddr[1] == number}
        return ", ".join(f"{psutil.Process(pid).name()} (pid {pid})" for pid in sorted(pids))
    except (psutil.Error, OSError):
        return ""


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
