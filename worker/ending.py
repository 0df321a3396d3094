"""Processes of this machine are ended, with all that they have started. Knows no Ray."""

import time
from collections.abc import Sequence

import psutil

EXIT_TIMEOUT_S = 10.0
"""How long a killed process may take to be gone."""


def end_processes(processes: Sequence[tuple[int, float]]) -> list[int]:
    """Kill the given (pid, start time) and their descendants on this machine; return the pids that are left after EXIT_TIMEOUT_S."""
    doomed = []
    for pid, created in processes:
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - created) < 1.0:
                doomed += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + EXIT_TIMEOUT_S
    while doomed and time.monotonic() < deadline:
        for process in doomed:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        _, doomed = psutil.wait_procs(doomed, timeout=0.5)
        doomed = [process for process in doomed if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    return [process.pid for process in doomed]
