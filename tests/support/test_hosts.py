"""Hosts out of network namespaces: nothing of them is left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hosts import ETC, ROOT, remove_leftovers, two_hosts, why_not
from tests.support.serving import is_alive, until

KILLED_RUN = """
import pathlib, sys, time
from tests.support.hosts import two_hosts
with two_hosts() as (left, right):
    process = left.start(["sleep", "1000"], pathlib.Path("/dev/null"))
    while process.pid not in left.pids():
        time.sleep(0.01)
    print(left.namespace, process.pid, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def _needs_hosts():
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def _is_there(namespace):
    return Path("/run/netns", namespace).exists() or (ETC / namespace).exists()


def test_a_host_ends_with_its_processes_also_after_a_failure(tmp_path):
    """A failing test leaves no process and no network."""
    seen = []

    def fail():
        with two_hosts() as (left, _):
            seen.extend([left.namespace, left.start(["sleep", "1000"], tmp_path / "log")])
            until(lambda: seen[1].pid in left.pids(), 10, "the process to be on the host")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen[1].wait(1) < 0
    assert not _is_there(seen[0])


def test_what_a_killed_run_left_is_removed():
    """SIGKILL of a test run leaves networks and processes; the next run removes both."""
    run = subprocess.Popen([sys.executable, "-c", KILLED_RUN], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    namespace, pid = run.stdout.readline().split()
    assert _is_there(namespace)
    run.kill()
    run.communicate()
    assert is_alive(int(pid))
    remove_leftovers()

    assert not is_alive(int(pid))
    assert not _is_there(namespace)
