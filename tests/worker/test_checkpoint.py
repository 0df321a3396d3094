"""Tests of worker/checkpoint.py: whole or not there, whatever happens in between."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import snapshot
from worker import checkpoint
from worker.checkpoint import load, load_model, publish, published, read_manifest, remove, remove_leftovers, verify
from worker.contract import checkpoint_name
from worker.errors import CheckpointCorruptError, CheckpointWriteError, StaleFenceError

FILES = {"manifest.json", "model.safetensors", "training.safetensors", "training.json"}
CALLS_OF_FSYNC = 6  # three files, the manifest, the directory, its parent


def test_what_was_published_is_read_back(tmp_path):
    """A checkpoint has the four files of the format, and they hold what was given."""
    manifest = publish(tmp_path, snapshot(120))
    directory = tmp_path / "step-00000120"

    assert {path.name for path in directory.iterdir()} == FILES
    assert verify(directory) == read_manifest(directory) == manifest
    assert set(manifest.files) == FILES - {"manifest.json"}
    loaded = load(directory)
    assert torch.equal(loaded.model["weight"], torch.full((3, 2), 120.0))
    assert loaded.scalars == {"step": 120}
    assert load_model(directory)[1].keys() == load_file(directory / "model.safetensors").keys() == {"weight"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000120"]


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_a_flipped_bit_is_found(tmp_path, name):
    """One bit in any file is enough, and the message names the file."""
    publish(tmp_path, snapshot(1))
    path = tmp_path / checkpoint_name(1) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)

    for read in (verify, load):
        with pytest.raises(CheckpointCorruptError, match=f"{name} has .* bytes and sha256 .*; the manifest says"):
            read(tmp_path / checkpoint_name(1))


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["gone", "short"]
)
def test_a_missing_or_short_file_is_found(tmp_path, damage):
    """A checkpoint with a hole is none."""
    publish(tmp_path, snapshot(1))
    damage(tmp_path / checkpoint_name(1) / "model.safetensors")

    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors"):
        verify(tmp_path / checkpoint_name(1))


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b"[]"])
def test_a_broken_manifest_is_said_so(tmp_path, content):
    """Never a traceback of the parser."""
    publish(tmp_path, snapshot(1))
    (tmp_path / checkpoint_name(1) / "manifest.json").write_bytes(content)

    with pytest.raises(CheckpointCorruptError, match="is no manifest of a checkpoint"):
        verify(tmp_path / checkpoint_name(1))
    assert published(tmp_path) == {}


@pytest.mark.parametrize("call", range(1, CALLS_OF_FSYNC + 1))
def test_a_failed_fsync_discards_the_directory(tmp_path, monkeypatch, call):
    """Whichever fsync fails: nothing new is published, nothing is left behind, and the checkpoint before is whole."""
    before = publish(tmp_path, snapshot(1))
    calls = []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointWriteError, match=r"checkpoint of step 2 was not written .* Input/output error"):
        publish(tmp_path, snapshot(2))

    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(1)]
    assert verify(tmp_path / checkpoint_name(1)) == before


def test_the_calls_of_fsync_are_as_many_as_the_test_above_tries(tmp_path, monkeypatch):
    """The test above is complete; and the parent directory comes last."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))

    publish(tmp_path, snapshot(1))

    assert len(synced) == CALLS_OF_FSYNC
    assert [path.name for path in synced[-3:-1]] == ["manifest.json", ".tmp-step-00000001-1"]
    assert synced[-1] == tmp_path


KILLED = """
import os, sys
from pathlib import Path
from tests.support.checkpoints import snapshot
from worker.checkpoint import publish

parent, last = Path(sys.argv[1]), int(sys.argv[2])
publish(parent, snapshot(1))
calls = []
def stuck(descriptor):
    calls.append(descriptor)
    if len(calls) == last:
        print("inside", flush=True)
        sys.stdin.read()
os.fsync = stuck
publish(parent, snapshot(2))
"""


@pytest.mark.parametrize("call", [1, 4, 5])
def test_a_writer_killed_halfway_leaves_the_previous_checkpoint_whole(tmp_path, call):
    """A real SIGKILL in the middle of a write; what is left behind is hidden, and removed by the next attempt."""
    code = [sys.executable, "-c", KILLED, str(tmp_path), str(call)]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as writer:
        timer_end = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(30) == -signal.SIGKILL
    assert timer_end == "inside\n"

    assert list(published(tmp_path)) == [1]
    assert verify(tmp_path / checkpoint_name(1)).step == 1
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint_name(1), ".tmp-step-00000002-1"}
    remove_leftovers(tmp_path)
    assert publish(tmp_path, snapshot(2, fence=2)).step == 2
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint_name(1), checkpoint_name(2)}


def test_a_stale_attempt_must_not_write(tmp_path):
    """A leftover rank of attempt 1 cannot publish beside attempt 2; the attempt itself can go on."""
    publish(tmp_path, snapshot(5, fence=2))

    with pytest.raises(StaleFenceError, match="fence 1 is older than fence 2"):
        publish(tmp_path, snapshot(6, fence=1))
    publish(tmp_path, snapshot(6, fence=2))
    assert list(published(tmp_path)) == [5, 6]


def test_a_step_published_before_is_kept(tmp_path):
    """A resumed attempt comes by the same step again: what is whole stays, and is what it announces."""
    first = publish(tmp_path, snapshot(1, fence=1))

    assert publish(tmp_path, snapshot(1, fence=2)) == first


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    """A resumed attempt mends what was damaged."""
    publish(tmp_path, snapshot(1, fence=1))
    (tmp_path / checkpoint_name(1) / "model.safetensors").write_bytes(b"")

    assert publish(tmp_path, snapshot(1, fence=2)).fence == 2
    assert verify(tmp_path / checkpoint_name(1)).fence == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_removing_hides_first(tmp_path, monkeypatch):
    """A deletion that is interrupted leaves a hidden name, never half a checkpoint under its own."""
    publish(tmp_path, snapshot(1))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)

    remove(tmp_path / checkpoint_name(1))

    assert [path.name for path in tmp_path.iterdir()] == [".deleted-step-00000001"]
    assert published(tmp_path) == {}


def test_no_directory_is_no_checkpoint(tmp_path):
    """Before the first one there is nothing, and that is no error."""
    assert published(tmp_path / "absent") == {}
    remove_leftovers(tmp_path / "absent")
