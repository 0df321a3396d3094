"""Finds and ends every process that descends from one start, however it came to be. Owns no process.

Whoever starts it gives it a marker in its environment and a session of its own; both are inherited, also after the parent is gone.
Neither is enough alone: Ray's processes write their titles over their environment, and a process may leave its session.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil


class ProcessesLeftError(RuntimeError):
    """Marked processes are still there after they were killed. System fault."""


def marked(name: str, value: str, sessions: set[int] | None = None) -> Iterator[psutil.Process]:
    """Yield the living processes whose environment says name=value, or that share a session with one of those.

    Args:
        name: the environment variable that marks.
        value: its value.
        sessions: ids of sessions known to belong; those of marked processes are added. This process's own never counts.
    """
    sessions = set() if sessions is None else sessions
    others = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    carriers = {process.pid for process in others if f"{name}={value}" in _environment(process)}
    sessions |= {_session(pid) for pid in carriers} - {_session(os.getpid()), 0}
    for process in others:
        if (process.pid in carriers or _session(process.pid) in sessions) and _is_alive(process):
            yield process


def end_marked(name: str, value: str, timeout_s: float) -> None:
    """Kill every marked process; return when none is left.

    Raises:
        ProcessesLeftError: some are left after `timeout_s`; names them.
    """
    deadline = time.monotonic() + timeout_s
    sessions: set[int] = set()
    # A marked process may be starting another while we look, so look until a look finds nothing.
    while left := list(marked(name, value, sessions)):
        if time.monotonic() > deadline:
            raise ProcessesLeftError(f"processes {[process.pid for process in left]} did not end; end them with kill -9")
        for process in left:
            _kill(process)
        psutil.wait_procs(left, timeout=0.1)


def _environment(process: psutil.Process) -> list[str]:
    """Return the entries of a process's environment; none where it is gone or another user's."""
    raw = Path(f"/proc/{process.pid}/environ")
    try:
        if raw.parent.exists():
            # Not through psutil, which takes an overwritten beginning for the end.
            return raw.read_bytes().decode(errors="replace").split("\0")
        return [f"{name}={value}" for name, value in process.environ().items()]
    except (psutil.Error, OSError):
        return []


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
