"""Tests of worker/bundle.py: uploaded code on a rank."""

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.archives import GOOD, special, tar
from worker.bundle import PREFIX, importable, remove_abandoned
from worker.contract.bundle import code_name, write_tar
from worker.errors import TaskError
from worker.storage.local import LocalStorage

KILLED = """
import sys, time, pathlib
from worker.bundle import importable
from worker.storage.local import LocalStorage
with importable(LocalStorage(pathlib.Path(sys.argv[1])), sys.argv[2]):
    print(sys.path[-1], flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where scratch directories of this test go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _stored(folder, data):
    sha256 = hashlib.sha256(data).hexdigest()
    LocalStorage(folder).put_code(sha256, data)
    return sha256


def test_uploaded_modules_can_be_imported_and_leave_nothing(tmp_path, scratch):
    """Inside the block, and from a directory that nobody else may look into."""
    before = list(sys.path)
    code = _stored(tmp_path, write_tar({"uploaded_for_this_test/__init__.py": b"WIDTH = 7\n"}))
    with importable(LocalStorage(tmp_path), code):
        import uploaded_for_this_test

        [folder] = scratch.iterdir()
        assert uploaded_for_this_test.WIDTH == 7
        assert str(folder) == sys.path[-1]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert sys.path == before
    assert list(scratch.iterdir()) == []


def test_without_code_there_is_nothing_to_do(tmp_path, scratch):
    """Most jobs have none."""
    with importable(LocalStorage(tmp_path), None):
        assert list(scratch.iterdir()) == []


def test_uploaded_code_does_not_replace_what_the_rank_needs(tmp_path):
    """It comes last on the path."""
    with importable(LocalStorage(tmp_path), _stored(tmp_path, write_tar({"this.py": b"raise SystemExit\n", "worker/__init__.py": b""}))):
        assert (Path(sys.path[-1]) / "this.py").is_file()
        assert importlib.util.find_spec("this").origin != str(Path(sys.path[-1]) / "this.py")


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"6"])
def test_an_archive_with_anything_but_files_is_refused_here_too(tmp_path, scratch, kind):
    """Whoever can write to the storage cannot have a rank write elsewhere."""
    with pytest.raises(TaskError, match="plain files"), importable(LocalStorage(tmp_path), _stored(tmp_path, special(kind))):
        pass
    with pytest.raises(TaskError, match="name"), importable(LocalStorage(tmp_path), _stored(tmp_path, tar({"../evil.py": b""}))):
        pass
    assert list(scratch.iterdir()) == []


def test_an_archive_that_was_changed_or_lost_is_refused(tmp_path):
    """It is not what was uploaded."""
    code = _stored(tmp_path, write_tar(GOOD))
    (tmp_path / code_name(code)).write_bytes(write_tar(GOOD | {"more.py": b""}))
    with pytest.raises(TaskError, match=code), importable(LocalStorage(tmp_path), code):
        pass
    (tmp_path / code_name(code)).unlink()
    with pytest.raises(TaskError, match="cannot be read"), importable(LocalStorage(tmp_path), code):
        pass


def test_what_a_killed_rank_left_is_removed_by_the_next_and_a_living_ones_stays(tmp_path, scratch):
    """The kernel says who is gone."""
    code = _stored(tmp_path, write_tar(GOOD))
    environment = {**os.environ, "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", KILLED, str(tmp_path), code]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    try:
        killed, living = (rank.stdout.readline().strip() for rank in ranks)
        assert killed.startswith(str(scratch / PREFIX))
        ranks[0].send_signal(signal.SIGKILL)
        ranks[0].wait(10)
        remove_abandoned()
        assert [str(path) for path in scratch.iterdir()] == [living]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
