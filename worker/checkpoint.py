"""A checkpoint: how it is written, verified and read back. The format is `worker.contract.manifest`, the place `worker.storage`.

Owns the files and their digests. Knows nothing of ranks, models or when to write. No pickle: tensors are safetensors, the rest is JSON.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from worker.contract.manifest import MANIFEST_NAME, ExportEntry, FileEntry, Manifest
from worker.errors import CheckpointCorruptError, CheckpointError, CheckpointWriteError, StaleFenceError
from worker.storage.local import LocalFile, open_plain
from worker.storage.storage import OpenFile, Storage
from worker.storage.tensors import TensorFile, TensorFileError, statistics_of

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"
SCALARS_FILE = "training.json"

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold. Tensors are contiguous copies on the CPU that nobody else changes."""

    manifest: Manifest
    """Complete but for `files`, `statistics` and `exports`."""
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    scalars: Mapping[str, Any]
    export: Callable[[Path, Mapping[str, Tensor]], Mapping[str, ExportEntry]] | None = None
    """Writes files in other formats beside the others, from the model; None: there are none."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read back, its digests verified."""

    manifest: Manifest
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    scalars: dict[str, Any]


def publish(storage: Storage, snapshot: Snapshot) -> Manifest:
    """Write a checkpoint and make it visible in one step.

    A whole checkpoint of the same step that is there already is kept and returned: a resumed run comes by the same steps again.

    Returns:
        The manifest as published.
    Raises:
        StaleFenceError: a published checkpoint carries a higher fence.
        CheckpointWriteError: nothing was published, and nothing is left behind but what readers do not see.
    """
    draft = snapshot.manifest
    try:
        present = _published_before(storage, draft).get(draft.step)
        if present is not None:
            if _is_whole(storage, present):
                return present
            storage.remove(draft.job_id, draft.step, unless_pinned=False)
        with storage.staging(draft) as directory:
            manifest = _write(directory, snapshot)
            _published_before(storage, draft)
            seen = storage.publish(directory, manifest)
    except (OSError, SafetensorError, TensorFileError) as error:
        raise CheckpointWriteError(
            f"the checkpoint of step {draft.step} was not written to the storage: {error}; free space, or mend the disk or the connection"
        ) from error
    if seen.fence > draft.fence:
        raise _stale(draft, seen.fence)
    return seen


def verify(directory: Path) -> Manifest:
    """Check every file of a checkpoint in a directory against its manifest.

    Raises:
        CheckpointCorruptError: naming the file, and what was found and expected.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        file = _opened(directory / name)
        try:
            _check(f"{directory / name}", entry, _digest_of(file))
        finally:
            file.close()
    return manifest


def load(storage: Storage, job_id: str, step: int) -> Loaded:
    """Read a checkpoint. What is verified is what is returned: every file is read once.

    Raises:
        CheckpointCorruptError: naming the file, and what was found and expected.
        CheckpointError: the storage does not answer.
    """
    try:
        manifest = storage.published(job_id).get(step)
    except OSError as error:
        raise CheckpointError(f"checkpoint {step} of {job_id} cannot be read: {error}; see the storage, and start the job again") from error
    if manifest is None:
        raise CheckpointCorruptError(f"checkpoint {step} of {job_id} is not in the storage; expected one that is listed; use another one")
    contents = {name: _read_checked(storage, manifest, name) for name in manifest.files if name not in manifest.exports}
    try:
        return Loaded(
            manifest,
            safetensors.torch.load(contents[MODEL_FILE]),
            safetensors.torch.load(contents[TRAINING_FILE]),
            json.loads(contents[SCALARS_FILE]),
        )
    except (KeyError, SafetensorError, ValueError) as error:
        raise CheckpointCorruptError(f"checkpoint {step} of {job_id} cannot be read: {error!r}; use another checkpoint") from error


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a checkpoint in a directory, without looking at the other files.

    Raises:
        CheckpointCorruptError: there is none, or it is none.
    """
    path = directory / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointCorruptError(f"{path} is no manifest of a checkpoint: {error}; use another checkpoint") from error


def _write(directory: Path, snapshot: Snapshot) -> Manifest:
    """Write the files of a checkpoint and return its manifest.

    Training goes on in another thread meanwhile: neither serializing to a file nor taking a digest holds Python's global lock, while
    `safetensors.torch.save`, to memory, holds it for seconds (measured: docs/benchmarks.md).
    """
    safetensors.torch.save_file(dict(snapshot.model), directory / MODEL_FILE)
    safetensors.torch.save_file(dict(snapshot.training), directory / TRAINING_FILE)
    (directory / SCALARS_FILE).write_text(json.dumps(dict(snapshot.scalars), indent=1, sort_keys=True))
    exports = dict(snapshot.export(directory, snapshot.model)) if snapshot.export else {}
    files = {name: _entry(directory / name) for name in (MODEL_FILE, TRAINING_FILE, SCALARS_FILE, *exports)}
    model = _opened(directory / MODEL_FILE)
    try:
        statistics = statistics_of(TensorFile.read(model), [layer.name for layer in snapshot.manifest.layers])
    finally:
        model.close()
    summary = FileEntry(size=len(statistics), sha256=hashlib.sha256(statistics).hexdigest())
    return snapshot.manifest.model_copy(update={"files": files, "statistics": summary, "exports": exports})


def _published_before(storage: Storage, draft: Manifest) -> dict[int, Manifest]:
    """Return what is published, or raise StaleFenceError where a later attempt has published."""
    found = storage.published(draft.job_id)
    newest = max((manifest.fence for manifest in found.values()), default=0)
    if newest > draft.fence:
        raise _stale(draft, newest)
    return found


def _stale(draft: Manifest, newest: int) -> StaleFenceError:
    return StaleFenceError(
        f"fence {draft.fence} is older than fence {newest}, which has published for {draft.job_id}; this attempt must end"
    )


def _is_whole(storage: Storage, manifest: Manifest) -> bool:
    try:
        for name, entry in manifest.files.items():
            file = storage.open(manifest, name)
            try:
                _check(name, entry, _digest_of(file))
            finally:
                file.close()
    except (FileNotFoundError, CheckpointCorruptError):
        return False
    return True


def _read_checked(storage: Storage, manifest: Manifest, name: str) -> bytes:
    entry = manifest.files[name]
    try:
        file = storage.open(manifest, name)
        try:
            content = file.read(0, file.size)
        finally:
            file.close()
    except OSError as error:
        raise CheckpointCorruptError(f"{name} of checkpoint {manifest.step} cannot be read: {error}; use another checkpoint") from error
    _check(f"{name} of checkpoint {manifest.step}", entry, (len(content), hashlib.sha256(content).hexdigest()))
    return content


def _entry(path: Path) -> FileEntry:
    """Return size and digest of a file that is not empty, in one call without Python's lock: a loop would take it for every chunk."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _opened(path: Path) -> LocalFile:
    try:
        return open_plain(path)
    except OSError as error:
        raise CheckpointCorruptError(f"{path} cannot be read: {error}; use another checkpoint") from error


def _digest_of(file: OpenFile) -> tuple[int, str]:
    digest = hashlib.sha256()
    for start in range(0, file.size, _CHUNK_BYTES):
        digest.update(file.read(start, _CHUNK_BYTES))
    return file.size, digest.hexdigest()


def _check(what: str, entry: FileEntry, found: tuple[int, str]) -> None:
    if found != (entry.size, entry.sha256):
        raise CheckpointCorruptError(
            f"{what} has {found[0]} bytes and sha256 {found[1][:12]}...; the manifest says {entry.size} bytes and {entry.sha256[:12]}...;"
            " it was damaged after writing; use another checkpoint"
        )
