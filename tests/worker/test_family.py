"""Tests of worker/family.py, on real processes that do what user code does."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from worker.family import end_families, wake_families

# What a rank's process may have started: each says its pid on the pipe, and would live for a minute.
STARTING = {
    "a child": "linger()",
    "a grandchild": "os.fork() or linger()",
    "a child that ignores SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN); linger()",
    "a process that has detached itself": "os.setsid(); os.fork() and os._exit(0); linger()",
    "a program in a session of its own": "os.setsid(); os.execv(sys.executable, [sys.executable, '-c', LINGER])",
    "one that is replaced by its child all the time": "replace_oneself()",
}
HEAD = """
    import os, signal, sys, time
    from worker.family import found_family

    LINGER = "import os, time; os.write(1, b'%d\\\\n' % os.getpid()); time.sleep(60)"

    def linger():
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(60)
        os._exit(0)

    def replace_oneself():
        os.write(1, b"%d\\n" % os.getpid())
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            if os.fork():
                os._exit(0)

    print(found_family(), flush=True)
    if os.fork() == 0:
        STARTING
    time.sleep(60)
"""


@contextlib.contextmanager
def _head(starting):
    """Start a process that founds a family and does what is said; yield (it, its start time, the pid of what it has started)."""
    program = textwrap.dedent(HEAD).replace("STARTING", starting)
    head = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    group = head.pid
    try:
        created, started = float(head.stdout.readline()), int(head.stdout.readline())
        yield head, created, started
    finally:
        for pid in (head.pid, started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        head.wait(10)
        head.stdout.close()


def _living(group):
    """Return the pids in a process group that are no zombies."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("what", STARTING)
def test_a_rank_is_ended_with_whatever_it_has_started(what):
    """User code that forks, detaches itself or ignores signals leaves nothing behind."""
    with _head(STARTING[what]) as (head, created, started):
        assert end_families([(head.pid, created)]) == []

        assert (_is_alive(head.pid), _is_alive(started), _living(head.pid)) == (False, False, [])


@pytest.mark.parametrize("what", [what for what in STARTING if what != "a process that has detached itself"])
def test_what_a_killed_rank_has_started_is_ended_too(what):
    """Killed from outside, as by the kernel for want of memory, it leaves orphans: they are known by what they have inherited."""
    with _head(STARTING[what]) as (head, created, started):
        head.kill()
        head.wait(10)

        assert end_families([(head.pid, created)]) == []
        assert (_is_alive(started), _living(head.pid)) == (False, [])


def test_what_a_rank_has_started_is_ended_while_the_killed_rank_is_a_zombie():
    """Nobody may have taken notice of its death yet."""
    with _head(STARTING["a child"]) as (head, created, started):
        head.kill()
        os.waitid(os.P_PID, head.pid, os.WEXITED | os.WNOWAIT)

        assert end_families([(head.pid, created)]) == []
        assert not _is_alive(started)


def test_a_family_that_was_left_stopped_goes_on():
    """Who is killed between stopping and ending it leaves it so."""
    with _head(STARTING["a child"]) as (head, created, started):
        for pid in (head.pid, started):
            os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, head.pid, os.WSTOPPED)

        assert wake_families([(head.pid, created)]) == []
        os.waitid(os.P_PID, head.pid, os.WCONTINUED)
        assert {psutil.Process(pid).status() for pid in (head.pid, started)}.isdisjoint({psutil.STATUS_STOPPED})


def test_a_stranger_with_the_same_pid_is_left_alone():
    """Pids are used again; the start time tells them apart. Where that is not known, only an actor of Ray is ended."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        try:
            assert end_families([(stranger.pid, psutil.Process(stranger.pid).create_time() - 100)]) == []
            assert end_families([(stranger.pid, 0.0)]) == []
            assert stranger.poll() is None
        finally:
            stranger.kill()
