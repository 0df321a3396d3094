"""The process of a rank and everything that it has started: kept together from its beginning, ended together.

Owns how members are recognized. User code may fork, detach what it forks, and ignore signals; the rank itself may be dead before it is
ended. Loads neither torch nor Ray.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from worker.settings import FAMILY_VARIABLE, export_family

EXIT_TIMEOUT_S = 6.0
"""How long killed processes may take to be gone."""
RAY_TITLE = "ray::"
"""What the name of a process begins with that runs an actor."""
_PR_SET_CHILD_SUBREAPER = 36
_SAME_START_S = 1.0
"""How far two readings of one process's start time may lie apart."""


def found_family() -> float:
    """Make this process the head of a family: whatever it starts is found by `end_families`, also when this process was killed.

    Its descendants stay such while it lives, because orphans among them become its children (Linux only). Once it is dead they are known
    by their process group, which is inherited, or by a mark in the environment, which is inherited by programs that are started.

    Returns:
        The start time of this process, seconds since the epoch, by which the family is known.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(OSError):  # it leads a group or a session already
        os.setpgid(0, 0)
    created = psutil.Process().create_time()
    export_family(f"{os.getpid()}:{created}")
    return created


def end_families(heads: Sequence[tuple[int, float]]) -> list[int]:
    """End the processes (pid, start time) on this machine and their families.

    Args:
        heads: dead or alive. Start time 0: not known; then whatever has the pid must be an actor of Ray.
    Returns:
        The pids that are left after EXIT_TIMEOUT_S.
    """
    deadline = time.monotonic() + EXIT_TIMEOUT_S
    while left := _stopped(heads, deadline):
        if time.monotonic() > deadline:
            return [process.pid for process in left]
        _signal_groups(heads, signal.SIGKILL)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.2)
    return []


def wake_families(heads: Sequence[tuple[int, float]]) -> list[int]:
    """Have families go on that were stopped to be ended, by somebody who was killed before it came to that. Return nobody: none is left."""
    for process in _members(heads):
        with contextlib.suppress(psutil.Error):
            process.resume()
    return []


def _stopped(heads: Sequence[tuple[int, float]], deadline: float) -> list[psutil.Process]:
    """Stop every member of the families, so that none can start another while it is looked for; return them."""
    _signal_groups(heads, signal.SIGSTOP)
    stopped: list[psutil.Process] = []
    while (new := [process for process in _members(heads) if process not in stopped]) and time.monotonic() < deadline:
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        stopped += new
    return stopped


def _signal_groups(heads: Sequence[tuple[int, float]], number: signal.Signals) -> None:
    """Send a signal to the process groups of the heads: the kernel misses nobody in it, however quickly they fork and end."""
    for pid, created in heads:
        if created and not _has_another_start(pid, created) and os.getpgrp() != pid:
            with contextlib.suppress(OSError):  # nobody is left in it
                os.killpg(pid, number)


def _members(heads: Sequence[tuple[int, float]]) -> list[psutil.Process]:
    """Return the living members of the families, in one look at all processes."""
    living = [process for process in psutil.process_iter() if process.pid != os.getpid() and _is_alive(process)]
    children: dict[int, list[psutil.Process]] = {}
    for process in living:
        with contextlib.suppress(psutil.Error):
            children.setdefault(process.ppid(), []).append(process)
    todo = [process for head in heads for process in _known(head, living)]
    found: dict[int, psutil.Process] = {}
    while todo:
        process = todo.pop()
        if process.pid not in found:
            found[process.pid] = process
            todo += children.get(process.pid, [])
    return list(found.values())


def _known(head: tuple[int, float], living: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return the head, where it lives, and whatever is known to be of its family without a look at parents."""
    pid, created = head
    if not created:
        return [process for process in living if process.pid == pid and _name(process).startswith(RAY_TITLE)]
    is_stranger = _has_another_start(pid, created)
    mark = f"{FAMILY_VARIABLE}={pid}:{created}".encode()
    # A number is given to no other process while a group has it: where a stranger has it, there is no such group of the family's.
    return [
        process for process in living
        if (not is_stranger and pid in {process.pid, _group(process)}) or mark in _environment(process)
    ]  # fmt: skip


def _has_another_start(pid: int, created: float) -> bool:
    try:
        return bool(abs(psutil.Process(pid).create_time() - created) > _SAME_START_S)
    except psutil.Error:
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return 0


def _environment(process: psutil.Process) -> list[bytes]:
    """Return the entries of a process's environment; none where it is gone or another user's, or where there is no /proc."""
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
