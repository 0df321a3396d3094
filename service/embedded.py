"""The embedded Ray of one home: started as processes of its own, found again after a controller restart, stopped without remainder.

Owns `HOME/ray.json` and the processes it names. Imports no Ray: it starts Ray's own command line. Every process carries the
session's marker in its environment, and whatever Ray starts inherits it; that is how the last of them is found.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from service.processes import ProcessesLeftError, end_marked, marked
from service.settings import inherited_environment

RECORD_NAME = "ray.json"
MARKER = "SYNCBN_EMBEDDED_RAY"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0
MAX_TEMPORARY_CHARS = 30
"""Ray adds some 75 characters to its directory for its Unix sockets, whose paths may have 107."""
# Ray replaces 127.0.0.1 by the address of the machine's outer interface, where others could reach it and which changes with the
# network; any other loopback address is left alone. Only Linux answers on all of 127/8, so elsewhere Ray is left to choose.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
# Object store: gangs put nothing in it; Ray refuses less than about 75 MB.
OBJECT_STORE_BYTES = 100_000_000
# More slots than cores on a small machine: a gang larger than the machine runs slowly instead of never.
MIN_CPU_SLOTS = 8
KEPT_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""For glibc: processes keep what they free. Training on the CPU would else give back the activations of every step, and the kernel would
clear each page anew (docs/benchmarks.md). What the operator has set goes first."""


class EmbeddedRayError(RuntimeError):
    """The embedded Ray could not be started or stopped. System fault; trying again may help."""


@dataclass(frozen=True)
class EmbeddedRay:
    """One running embedded Ray."""

    session: str
    address: str
    """host:port of its head, for `ray.init`."""
    token_path: str
    """File with the token that every client must present, mode 0600."""
    directory: str
    """Ray's own session files. Short, because Unix socket paths are limited to 107 bytes."""


def ensure(home: Path) -> EmbeddedRay:
    """Return this home's running embedded Ray, starting one where there is none.

    Raises:
        EmbeddedRayError: Ray did not come up within START_TIMEOUT_S; the message has the end of its output.
    """
    found = _recorded(home)
    if found is not None:
        if _is_whole(found):
            return found
        stop(home)
    return _start(home)


def is_alive(home: Path) -> bool:
    """Return whether this home's embedded Ray is there and whole."""
    found = _recorded(home)
    return found is not None and _is_whole(found)


def stop(home: Path) -> None:
    """End every process of this home's embedded Ray, ranks included, and remove its files. Does nothing where there is none.

    Raises:
        EmbeddedRayError: processes are left after STOP_TIMEOUT_S; names them.
    """
    found = _recorded(home)
    if found is None:
        return
    try:
        end_marked(MARKER, found.session, STOP_TIMEOUT_S)
    except ProcessesLeftError as error:
        raise EmbeddedRayError(f"the embedded Ray did not end: {error}") from error
    shutil.rmtree(found.directory, ignore_errors=True)
    (home / RECORD_NAME).unlink(missing_ok=True)


def _start(home: Path) -> EmbeddedRay:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = tempfile.mkdtemp(prefix="syncbn-", dir=_short_directory())
    token_path = home / "ray-token"
    # One token for the life of the home: Ray reads it once in a process and would not see a new one.
    with contextlib.suppress(FileExistsError), os.fdopen(os.open(token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
    pending = EmbeddedRay(session=secrets.token_hex(8), address="", token_path=str(token_path), directory=directory)
    # Recorded before anything runs: a controller killed from here on leaves nothing that `stop` cannot find.
    _record(home, pending)
    started = EmbeddedRay(**{**asdict(pending), "address": _launch(pending, home / "ray.log")})
    _record(home, started)
    return started


def _launch(pending: EmbeddedRay, log: Path) -> str:
    """Run `ray start`, which returns when the head is up, and return the head's address."""
    with log.open("wb") as output:
        try:
            code = subprocess.run(  # noqa: S603 - a fixed command line of our own
                _command(pending), env=_environment(pending), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, timeout=START_TIMEOUT_S, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1
    address = Path(pending.directory) / "ray" / "ray_current_cluster"
    if code != 0 or not address.exists():
        end_marked(MARKER, pending.session, STOP_TIMEOUT_S)
        tail = log.read_text(errors="replace")[-2000:]
        raise EmbeddedRayError(
            f"the embedded Ray did not start within {START_TIMEOUT_S:.0f} s (exit status {code}); run syncbn doctor; its output:\n{tail}"
        )
    return address.read_text().strip()


def _command(pending: EmbeddedRay) -> list[str]:
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", f"--node-ip-address={LOOPBACK}",
        f"--num-cpus={max(MIN_CPU_SLOTS, os.cpu_count() or 1)}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={pending.directory}/ray", f"--ray-client-server-port={_free_port()}",
        f"--dashboard-agent-listen-port={_free_port()}", "--include-dashboard=false", "--include-log-monitor=false",
        "--no-monitor", "--disable-usage-stats",
    ]  # fmt: skip


def _environment(pending: EmbeddedRay) -> dict[str, str]:
    return {
        **KEPT_MEMORY,
        **inherited_environment(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": pending.token_path,
        "RAY_USAGE_STATS_ENABLED": "0",
        # One idle Python worker per slot would otherwise start with the first driver and compete with the ranks.
        "RAY_prestart_worker_first_driver": "0",
        # The titles that Ray gives its workers would else be written over the environment that /proc shows, and over the marker in it.
        "SPT_NOENV": "1",
        MARKER: pending.session,
    }


def _short_directory() -> str:
    """Return where temporary files go; not where TMPDIR is so long that Ray's socket paths would not fit."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= MAX_TEMPORARY_CHARS else "/tmp"  # noqa: S108 - mkdtemp makes a private directory in it


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _record(home: Path, ray: EmbeddedRay) -> None:
    temporary = home / f".{RECORD_NAME}"
    temporary.write_text(json.dumps(asdict(ray)))
    temporary.replace(home / RECORD_NAME)


def _recorded(home: Path) -> EmbeddedRay | None:
    try:
        return EmbeddedRay(**json.loads((home / RECORD_NAME).read_text()))
    except FileNotFoundError:
        return None


def _is_whole(ray: EmbeddedRay) -> bool:
    """Return whether the head's two servers run; without either, Ray must be started again."""
    names = {process.name() for process in marked(MARKER, ray.session)}
    return bool(ray.address) and {"gcs_server", "raylet"} <= names
