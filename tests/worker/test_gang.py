"""Tests of worker/gang.py that need no Ray; forming, draining and dissolving are tested in tests/service/test_cluster.py."""

import subprocess
import sys

import psutil
import ray

from worker.gang import RankDiedError, UnreachableError, end_processes, read_failure

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


def test_only_a_known_death_is_a_death():
    """Whatever else goes wrong in Ray says nothing about the rank."""
    assert isinstance(read_failure(ray.exceptions.ActorDiedError()), RankDiedError)
    assert isinstance(read_failure(ray.exceptions.ActorUnavailableError("gone for now", None)), UnreachableError)
    assert isinstance(read_failure(ray.exceptions.GetTimeoutError("late")), UnreachableError)
    assert isinstance(read_failure(RuntimeError("what?")), UnreachableError)
