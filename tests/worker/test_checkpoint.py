"""Tests of worker/checkpoint.py and worker/storage/local.py: whole or not there, whatever happens in between."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import JOB, snapshot
from worker.checkpoint import load, publish, read_manifest, verify
from worker.contract import checkpoint_name, checkpoints_directory
from worker.errors import CheckpointCorruptError, CheckpointWriteError
from worker.storage import local
from worker.storage.local import LocalStorage, published

FILES = {"manifest.json", "model.safetensors", "training.safetensors", "training.json"}
CALLS_OF_FSYNC = 6  # three files, the manifest, the directory, its parent
ROOT = Path(__file__).parents[2]


@pytest.fixture
def storage(tmp_path):
    """An empty local storage."""
    return LocalStorage(tmp_path)


@pytest.fixture
def parent(tmp_path):
    """Where its checkpoints lie."""
    return tmp_path / checkpoints_directory(JOB)


def _names(parent):
    return {path.name for path in parent.iterdir()}


def test_what_was_published_is_read_back(storage, parent):
    """A checkpoint has the four files of the format, and they hold what was given."""
    manifest = publish(storage, snapshot(120))
    directory = parent / "step-00000120"

    assert _names(directory) == FILES
    assert verify(directory) == read_manifest(directory) == manifest
    assert set(manifest.files) == FILES - {"manifest.json"}
    loaded = load(storage, JOB, 120)
    assert torch.equal(loaded.model["weight"], torch.full((3, 2), 120.0))
    assert loaded.scalars == {"step": 120}
    assert load_file(directory / "model.safetensors").keys() == {"weight"}
    assert _names(parent) == {"step-00000120"}


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_a_flipped_bit_is_found(storage, parent, name):
    """One bit in any file is enough, and the message names the file."""
    publish(storage, snapshot(1))
    path = parent / checkpoint_name(1) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)

    for read in (lambda: verify(parent / checkpoint_name(1)), lambda: load(storage, JOB, 1)):
        with pytest.raises(CheckpointCorruptError, match=f"{name} .*has .* bytes and sha256 .*; the manifest says|{name} has"):
            read()


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["gone", "short"]
)
def test_a_missing_or_short_file_is_found(storage, parent, damage):
    """A checkpoint with a hole is none."""
    publish(storage, snapshot(1))
    damage(parent / checkpoint_name(1) / "model.safetensors")

    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors"):
        verify(parent / checkpoint_name(1))


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b"[]"])
def test_a_broken_manifest_is_said_so(storage, parent, content):
    """Never a traceback of the parser."""
    publish(storage, snapshot(1))
    (parent / checkpoint_name(1) / "manifest.json").write_bytes(content)

    with pytest.raises(CheckpointCorruptError, match="is no manifest of a checkpoint"):
        verify(parent / checkpoint_name(1))
    assert storage.published(JOB) == {}


@pytest.mark.parametrize("call", range(1, CALLS_OF_FSYNC + 1))
def test_a_failed_fsync_discards_the_directory(storage, parent, monkeypatch, call):
    """Whichever fsync fails: nothing new is published, nothing is left behind, and the checkpoint before is whole."""
    before = publish(storage, snapshot(1))
    calls = []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointWriteError, match=r"checkpoint of step 2 was not written .* Input/output error"):
        publish(storage, snapshot(2))

    monkeypatch.undo()
    assert _names(parent) == {checkpoint_name(1)}
    assert verify(parent / checkpoint_name(1)) == before


def test_the_calls_of_fsync_are_as_many_as_the_test_above_tries(storage, parent, monkeypatch):
    """The test above is complete; and the parent directory comes last."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))

    publish(storage, snapshot(1))

    assert len(synced) == CALLS_OF_FSYNC
    assert {path.name for path in synced[:4]} == FILES
    assert [path.name for path in synced[-3:-1]] == ["manifest.json", ".tmp-step-00000001-1"]
    assert synced[-1] == parent


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path):
    """On a real file system without room: said in words, nothing left behind, and with room again the next one is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    try:
        storage, parent = LocalStorage(disk), disk / checkpoints_directory(JOB)
        before = publish(storage, snapshot(1))
        (disk / "ballast").write_bytes(bytes(1 << 19))
        with pytest.raises(CheckpointWriteError, match=r"step 2 was not written .*No space left on device.*; free space"):
            publish(storage, snapshot(2, weights=50_000))
        assert _names(parent) == {checkpoint_name(1)}
        assert verify(parent / checkpoint_name(1)) == before

        (disk / "ballast").unlink()
        assert publish(storage, snapshot(2, weights=50_000)).step == 2
    finally:
        subprocess.run(["umount", disk], check=True)


KILLED = """
import os, sys
from pathlib import Path
from tests.support.checkpoints import snapshot
from worker.checkpoint import publish
from worker.storage.local import LocalStorage

storage, last = LocalStorage(Path(sys.argv[1])), int(sys.argv[2])
publish(storage, snapshot(1))
calls = []
def stuck(descriptor):
    calls.append(descriptor)
    if len(calls) == last:
        print("inside", flush=True)
        sys.stdin.read()
os.fsync = stuck
publish(storage, snapshot(2))
"""


@pytest.mark.parametrize("call", [1, 4, 5])
def test_a_writer_killed_halfway_leaves_the_previous_checkpoint_whole(storage, parent, tmp_path, call):
    """A real SIGKILL in the middle of a write; what is left behind is hidden, and removed by the next attempt."""
    code = [sys.executable, "-c", KILLED, str(tmp_path), str(call)]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        said = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(30) == -signal.SIGKILL
    assert said == "inside\n"

    assert list(storage.published(JOB)) == [1]
    assert verify(parent / checkpoint_name(1)).step == 1
    assert _names(parent) == {checkpoint_name(1), ".tmp-step-00000002-1"}
    storage.sweep(JOB)
    assert publish(storage, snapshot(2, fence=2)).step == 2
    assert _names(parent) == {checkpoint_name(1), checkpoint_name(2)}


RESTLESS = """
import os, sys
from pathlib import Path
from tests.support.checkpoints import JOB, snapshot
from worker.checkpoint import publish
from worker.storage.local import LocalStorage

storage = LocalStorage(Path(sys.argv[1]))
for line in sys.stdin:
    writer = os.fork()
    if writer:
        os.waitpid(writer, 0)
        print("gone", flush=True)
        continue
    print(os.getpid(), flush=True)
    step = int(line)
    while True:
        publish(storage, snapshot(step, fence=step, weights=50_000))
        print(step, flush=True)
        storage.remove(JOB, step - 2, unless_pinned=True)
        step += 1
"""


def test_whatever_is_listed_after_a_kill_at_any_moment_is_whole(storage, parent, tmp_path):
    """A writer that publishes and prunes without pause, killed at random moments: what is listed is whole, what was said is there."""
    moments, last = random.Random(7), 0
    with subprocess.Popen(
        [sys.executable, "-c", RESTLESS, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as tree:
        for _ in range(12):
            tree.stdin.write(f"{last + 1}\n")
            tree.stdin.flush()
            writer, first = int(tree.stdout.readline()), int(tree.stdout.readline())
            time.sleep(moments.uniform(0, 0.05))
            os.kill(writer, signal.SIGKILL)
            said = [first, *map(int, iter(lambda: tree.stdout.readline().strip().replace("gone", ""), ""))]
            listed = storage.published(JOB)
            assert max(said) in listed
            assert all(verify(parent / checkpoint_name(step)) == manifest for step, manifest in listed.items())
            storage.sweep(JOB)
            assert _names(parent) == {checkpoint_name(step) for step in listed}
            last = max(listed)
        tree.stdin.close()


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(storage, parent):
    """A resumed attempt mends what was damaged."""
    publish(storage, snapshot(1, fence=1))
    (parent / checkpoint_name(1) / "model.safetensors").write_bytes(b"")

    assert publish(storage, snapshot(1, fence=2)).fence == 2
    assert verify(parent / checkpoint_name(1)).fence == 2
    assert len(_names(parent)) == 1


def test_removing_hides_first(storage, parent, monkeypatch):
    """A deletion that is interrupted leaves a hidden name, never half a checkpoint under its own."""
    publish(storage, snapshot(1))
    monkeypatch.setattr(local.shutil, "rmtree", lambda *_, **__: None)

    assert storage.remove(JOB, 1, unless_pinned=False)

    assert [name.rpartition("-")[0] for name in _names(parent)] == [".deleted-step-00000001"]
    assert storage.published(JOB) == {}


def test_a_pin_that_comes_during_a_deletion_brings_the_checkpoint_back(storage, parent, monkeypatch):
    """Who pins looks afterwards whether the checkpoint is there; who deletes hides it and looks for a pin afterwards."""
    manifest = publish(storage, snapshot(1))
    rename = Path.rename

    def pinned_meanwhile(path, target):
        renamed = rename(path, target)
        storage.pin(JOB, 1)
        return renamed

    monkeypatch.setattr(Path, "rename", pinned_meanwhile)

    assert not storage.remove(JOB, 1, unless_pinned=True)
    assert verify(parent / checkpoint_name(1)) == manifest


def test_the_statistics_alone_have_a_digest_of_their_own(storage):
    """Of layers that have any: their names and bytes as in the model, readable by the library."""
    model = {"conv.weight": torch.ones(2, 2), "norm.running_mean": torch.tensor([1.0, 2.0]), "norm.num_batches_tracked": torch.tensor(3)}
    manifest = publish(storage, snapshot(1, model=model, layers=("norm",)))
    from safetensors.torch import load as parse
    from safetensors.torch import save

    from worker.storage.tensors import Bytes, TensorFile, statistics_of

    content = statistics_of(TensorFile.read(Bytes(save(model))), ["norm", "absent"])
    assert (manifest.statistics.size, manifest.statistics.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert {name: tensor.tolist() for name, tensor in parse(content).items()} == {
        "norm.running_mean": [1, 2],
        "norm.num_batches_tracked": 3,
    }


def test_no_directory_is_no_checkpoint(tmp_path):
    """Before the first one there is nothing, and that is no error."""
    assert published(tmp_path / "absent") == {}
