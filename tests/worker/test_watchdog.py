"""Tests of worker/watchdog.py."""

import subprocess
import sys

HOLDING = """
import ctypes, threading, time
from worker.watchdog import interpreter_watched

def keep_the_lock():
    ctypes.PyDLL(None).sleep(60)

with interpreter_watched(held_s=HELD_S, beat_s=0.1):
    WHAT
print("went on")
"""


def _run(what, held_s):
    program = HOLDING.replace("WHAT", what).replace("HELD_S", str(held_s))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)


def test_a_process_whose_python_is_held_up_ends_and_says_where():
    """The line that keeps the lock is on its standard error."""
    done = _run("keep_the_lock()", 1.0)

    assert done.returncode == 1
    assert "in keep_the_lock" in done.stderr
    assert done.stdout == ""


def test_a_process_that_is_merely_busy_goes_on():
    """Waiting lets others run, and so does Python code that computes; after the block nothing is watched."""
    done = _run("threading.Event().wait(0.2)\n    sum(range(10**6))", 30.0)

    assert (done.returncode, done.stdout) == (0, "went on\n")
