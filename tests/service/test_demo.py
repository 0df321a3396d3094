"""The demo's promise: whatever happens to it, and whenever, nothing is left."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from service.cli.family import MARK, Family
from service.cli.interrupts import Guard, Interrupted, guarded
from tests.support.serving import until

COMMAND = [sys.executable, "-m", "service.cli.main", "demo"]


def _left():
    """Return what is left of demos: marked processes, and files in the temporary directory."""
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and f"{MARK}=".encode() in (directory / "environ").read_bytes():
                found.append(psutil.Process(int(directory.name)).cmdline())
        except (OSError, psutil.Error):
            continue
    return found + list(Path(tempfile.gettempdir()).glob("syncbn-demo-*"))


def test_the_first_signal_interrupts_and_no_other_does():
    """Ctrl-C again while it tidies up does not break the tidying."""
    steps = []
    with guarded() as guard:
        try:
            try:
                guard.arm()
                signal.raise_signal(signal.SIGINT)
                steps.append("not reached")
            finally:
                guard.disarm()
        except Interrupted as error:
            steps.append(str(error))
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            steps.append("tidied up")
    assert steps == ["SIGINT", "tidied up"]


def test_a_signal_before_the_work_prevents_it():
    """Ctrl-C between the first instruction and the first step is not lost."""
    with guarded() as guard:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            guard.arm()


def test_an_interruption_waits_for_the_end_of_a_held_block():
    """A process that is just being started is not lost."""
    with guarded() as guard:
        guard.arm()
        steps = []

        def start():
            with guard.held():
                signal.raise_signal(signal.SIGINT)
                steps.append("started")
            steps.append("not reached")

        with pytest.raises(Interrupted):
            start()
        assert steps == ["started"]


def test_an_interruption_that_got_lost_is_found_again():
    """Some code swallows exceptions; the next check raises it anew."""
    guard = Guard()
    guard.arm()
    with pytest.raises(Interrupted):
        guard.handle(signal.SIGINT, None)
    with pytest.raises(Interrupted):
        guard.check()


def test_a_family_is_found_through_daemons_and_ended():
    """A child of a child that has left its session and lost its parent is still ours; its neighbour is not."""
    daemon = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)"
    ours, other = Family(), Family()
    try:
        assert ours.start([sys.executable, "-c", daemon], log=Path(os.devnull)).wait(20) == 0
        neighbour = other.start([sys.executable, "-c", "import time; time.sleep(100)"], log=Path(os.devnull))
        assert len(list(ours.members())) == 1
        ours.end()
        assert list(ours.members()) == []
        assert neighbour.poll() is None
    finally:
        ours.end()
        other.end()
        neighbour.wait(5)


@pytest.mark.ray
def test_the_demo_keeps_its_promises(tmp_path):
    """From nothing to a checkpoint that predicts in plain PyTorch, in at most a minute or so, and back to nothing."""
    kept = tmp_path / "checkpoint"
    done = subprocess.run([*COMMAND, "--json", "--keep", kept], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["accuracy"] >= 0.97
    assert (result["norm_class"], result["checkpoint"]) == ("BatchNorm2d", str(kept))
    assert (kept / "manifest.json").exists()
    assert _left() == []


@pytest.mark.ray
@pytest.mark.parametrize(("moment", "number"), [("1. Start", signal.SIGINT), ("2. Wait", signal.SIGTERM), ("step ", signal.SIGHUP)])
def test_an_interrupted_demo_leaves_nothing(moment, number):
    """Ctrl-C, twice, at any moment: exit code 130, no process, no file."""
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any(line.startswith(moment) for line in process.stdout)
        process.send_signal(number)
        time.sleep(0.3)  # the second one is to hit the tidying
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    until(lambda: not _left(), 2, "the last zombie to be reaped")
