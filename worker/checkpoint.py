"""A checkpoint on disk: how it is published whole or not at all, verified, and read. The format is `worker.contract.manifest`.

Owns the files. Knows nothing of ranks, models or when to write. No pickle: tensors are safetensors, the rest is JSON.

Publication: temporary directory -> files, each fsynced -> manifest, fsynced -> directory fsynced -> rename to a name that did not exist ->
parent fsynced. A crash at any moment leaves either the whole checkpoint or a hidden directory that nobody reads.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from worker.contract.manifest import MANIFEST_NAME, FileEntry, Manifest, checkpoint_name
from worker.errors import CheckpointCorruptError, CheckpointWriteError, StaleFenceError

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"
SCALARS_FILE = "training.json"
TEMPORARY_PREFIX = ".tmp-"
DELETED_PREFIX = ".deleted-"

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold. Tensors are contiguous copies on the CPU that nobody else changes."""

    manifest: Manifest
    """Complete but for `files`."""
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read back, its digests verified."""

    manifest: Manifest
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    scalars: dict[str, Any]


def publish(parent: Path, snapshot: Snapshot) -> Manifest:
    """Write a checkpoint and make it visible in one step.

    A whole checkpoint of the same step that is there already is kept and returned: a resumed run comes by the same steps again.

    Returns:
        The manifest as published.
    Raises:
        StaleFenceError: a published checkpoint carries a higher fence.
        CheckpointWriteError: nothing was published, and nothing is left behind but hidden names.
    """
    draft = snapshot.manifest
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _refuse_stale(parent, draft)
        final = parent / checkpoint_name(draft.step)
        if final.exists():
            kept = _whole_or_none(final)
            if kept is not None:
                return kept
            remove(final)
        return _publish_new(parent, final, snapshot)
    except OSError as error:
        raise CheckpointWriteError(
            f"the checkpoint of step {draft.step} was not written to {parent}: {error}; free space or mend the disk"
        ) from error


def verify(directory: Path) -> Manifest:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointCorruptError: naming the file, and what was found and expected.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        _check(directory / name, entry, _digest_of(directory / name))
    return manifest


def load(directory: Path) -> Loaded:
    """Read a checkpoint. What is verified is what is returned: every file is read once.

    Raises:
        CheckpointCorruptError: naming the file, and what was found and expected.
    """
    manifest = read_manifest(directory)
    contents = {name: _read_checked(directory / name, entry) for name, entry in manifest.files.items()}
    try:
        return Loaded(
            manifest,
            safetensors.torch.load(contents[MODEL_FILE]),
            safetensors.torch.load(contents[TRAINING_FILE]),
            json.loads(contents[SCALARS_FILE]),
        )
    except (KeyError, SafetensorError, ValueError) as error:
        raise CheckpointCorruptError(f"{directory} cannot be read: {error!r}; use another checkpoint") from error


def load_model(directory: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Read the model's part of a checkpoint, verified like `load`."""
    manifest = read_manifest(directory)
    if MODEL_FILE not in manifest.files:
        raise CheckpointCorruptError(f"{directory} names no {MODEL_FILE}; expected one; use another checkpoint")
    content = _read_checked(directory / MODEL_FILE, manifest.files[MODEL_FILE])
    return manifest, safetensors.torch.load(content)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a checkpoint, without looking at the other files.

    Raises:
        CheckpointCorruptError: there is none, or it is none.
    """
    path = directory / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointCorruptError(f"{path} is no manifest of a checkpoint: {error}; use another checkpoint") from error


def published(parent: Path) -> dict[int, Manifest]:
    """Return the manifests of all published checkpoints under a directory, by step; what has no readable manifest is none."""
    found = {}
    for directory in parent.glob("step-*") if parent.is_dir() else ():
        try:
            manifest = read_manifest(directory)
        except CheckpointCorruptError:
            continue
        found[manifest.step] = manifest
    return dict(sorted(found.items()))


def remove(directory: Path) -> None:
    """Delete a checkpoint: hidden by a rename first, so that no reader meets a half-deleted one."""
    hidden = directory.with_name(f"{DELETED_PREFIX}{directory.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    _fsync_directory(directory.parent)
    shutil.rmtree(hidden)


def remove_leftovers(parent: Path) -> None:
    """Delete what earlier attempts left behind half-written or half-deleted. Only for the one who writes here now."""
    for prefix in (TEMPORARY_PREFIX, DELETED_PREFIX):
        for directory in parent.glob(f"{prefix}*"):
            shutil.rmtree(directory, ignore_errors=True)


def _publish_new(parent: Path, final: Path, snapshot: Snapshot) -> Manifest:
    draft = snapshot.manifest
    temporary = parent / f"{TEMPORARY_PREFIX}{final.name}-{draft.fence}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        files = {
            MODEL_FILE: _write(temporary / MODEL_FILE, safetensors.torch.save(dict(snapshot.model))),
            TRAINING_FILE: _write(temporary / TRAINING_FILE, safetensors.torch.save(dict(snapshot.training))),
            SCALARS_FILE: _write(temporary / SCALARS_FILE, json.dumps(dict(snapshot.scalars), indent=1, sort_keys=True).encode()),
        }
        manifest = draft.model_copy(update={"files": files})
        _write(temporary / MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
        _fsync_directory(temporary)
        _refuse_stale(parent, draft)
        temporary.rename(final)
        _publish_name(parent, final)
    except BaseException:
        # After a failed fsync the pages may be marked clean and lost: the directory is worth nothing, a second fsync proves nothing.
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def _publish_name(parent: Path, final: Path) -> None:
    """Make the rename itself last. A name that might be gone after a power loss is taken back, because it must not be announced."""
    try:
        _fsync_directory(parent)
    except OSError:
        shutil.rmtree(final, ignore_errors=True)
        raise


def _refuse_stale(parent: Path, draft: Manifest) -> None:
    newest = max((manifest.fence for manifest in published(parent).values()), default=0)
    if newest > draft.fence:
        raise StaleFenceError(f"fence {draft.fence} is older than fence {newest}, which has published in {parent}; this attempt must end")


def _whole_or_none(directory: Path) -> Manifest | None:
    try:
        return verify(directory)
    except CheckpointCorruptError:
        return None


def _write(path: Path, content: bytes) -> FileEntry:
    """Write and fsync one file, taking its digest on the way."""
    digest = hashlib.sha256()
    view = memoryview(content)
    with path.open("xb") as file:
        for start in range(0, len(view), _CHUNK_BYTES):
            chunk = view[start : start + _CHUNK_BYTES]
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size=len(view), sha256=digest.hexdigest())


def _read_checked(path: Path, entry: FileEntry) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointCorruptError(f"{path} cannot be read: {error}; use another checkpoint") from error
    _check(path, entry, (len(content), hashlib.sha256(content).hexdigest()))
    return content


def _digest_of(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointCorruptError(f"{path} cannot be read: {error}; use another checkpoint") from error


def _check(path: Path, entry: FileEntry, found: tuple[int, str]) -> None:
    if found != (entry.size, entry.sha256):
        raise CheckpointCorruptError(
            f"{path} has {found[0]} bytes and sha256 {found[1][:12]}...; the manifest says {entry.size} bytes and {entry.sha256[:12]}...;"
            " it was damaged after writing; use another checkpoint"
        )


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
