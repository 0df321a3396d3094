"""Tests of service/processes.py."""

import os
import subprocess
import sys

import pytest

from service.processes import end_marked, marked
from tests.support.serving import is_alive, until

MARK = "SYNCBN_TEST_MARK"
# A child in the same session that has thrown its environment away, as a process that overwrites it with its title has.
PARENT = "import subprocess, time; print(subprocess.Popen(['sleep', '60'], env={}).pid, flush=True); time.sleep(60)"


@pytest.fixture
def family():
    """A marked parent in a session of its own, and the pid of its unmarked child."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env={**os.environ, MARK: "a"}, stdout=subprocess.PIPE, start_new_session=True)
    child = int(parent.stdout.readline())
    yield parent, child
    end_marked(MARK, "a", 10)
    parent.wait()
    parent.stdout.close()


def test_every_process_of_the_session_is_found(family):
    """A process that lost the mark is found by its session; this process never is."""
    parent, child = family

    assert {process.pid for process in marked(MARK, "a")} == {parent.pid, child}
    assert not list(marked(MARK, "b"))


def test_every_process_is_ended(family):
    """Nothing is left when it returns."""
    parent, child = family
    end_marked(MARK, "a", 10)
    parent.wait(5)

    until(lambda: not is_alive(child), 5, "the child to end")
    assert not list(marked(MARK, "a"))
