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
