"""Tests of worker/ending.py."""

import subprocess
import sys

import psutil

from worker.ending import end_processes

PARENT = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


def test_a_process_is_ended_with_its_descendants():
    """User code that forked leaves nothing behind."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    child = psutil.Process(int(parent.stdout.readline()))
    left = end_processes([(parent.pid, psutil.Process(parent.pid).create_time())])
    parent.wait()
    parent.stdout.close()

    assert left == []
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_stranger_with_the_same_pid_is_left_alone():
    """Pids are used again; the start time tells them apart."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        assert end_processes([(stranger.pid, psutil.Process(stranger.pid).create_time() - 100)]) == []
        assert stranger.poll() is None
        stranger.kill()
