"""Checkpoints in a local directory, which every node shares. Owns fsync and rename; the worker's and the service's only file with them.

jobs/{job_id}/checkpoints/step-00000120/    a checkpoint, whole
jobs/{job_id}/checkpoints/.tmp-...          being written, or left behind by a writer that was killed
jobs/{job_id}/checkpoints/.deleted-...      being deleted, or left behind likewise
jobs/{job_id}/pins/step-00000120            an empty file: this checkpoint is pinned
.gangs/...                                  markers

Publication: files fsynced -> manifest, fsynced -> directory fsynced -> rename to a name that did not exist -> parent fsynced. A crash at
any moment leaves either the whole checkpoint or a hidden directory that nobody reads.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from worker.contract.bundle import code_name
from worker.contract.manifest import MANIFEST_NAME, Manifest, checkpoint_name, checkpoints_directory, pins_directory, step_of
from worker.storage.storage import Identity

TEMPORARY_PREFIX = ".tmp-"
DELETED_PREFIX = ".deleted-"


@dataclass(frozen=True)
class LocalFile:
    """An open plain file. Stays whole if its checkpoint is deleted meanwhile."""

    descriptor: int
    size: int

    def identity(self) -> Identity:
        """See OpenFile."""
        found = os.fstat(self.descriptor)
        return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def fileno(self) -> int:
        """See OpenFile."""
        return self.descriptor

    def read(self, start: int, length: int) -> bytes:
        """See OpenFile."""
        return os.pread(self.descriptor, length, start)

    def close(self) -> None:
        """See OpenFile."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class LocalStorage:
    """A directory. See Storage for what the methods promise."""

    root: Path

    @property
    def address(self) -> str:
        """See Storage."""
        return str(self.root)

    def published(self, job_id: str) -> dict[int, Manifest]:
        """See Storage."""
        found = published(self._checkpoints(job_id))
        return {step: manifest for step, manifest in found.items() if manifest.job_id == job_id}

    def steps(self, job_id: str) -> set[int]:
        """See Storage."""
        return _steps(self._checkpoints(job_id))

    def jobs(self) -> list[str]:
        """See Storage."""
        return sorted(_names(self.root / "jobs"))

    @contextmanager
    def staging(self, draft: Manifest) -> Iterator[Path]:
        """See Storage. Lies beside the checkpoints, so that a rename can publish it."""
        directory = self._checkpoints(draft.job_id) / f"{TEMPORARY_PREFIX}{checkpoint_name(draft.step)}-{draft.fence}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            yield directory
        finally:
            # After a failed fsync the pages may be marked clean and lost: the directory is worth nothing, a second fsync proves nothing.
            shutil.rmtree(directory, ignore_errors=True)

    def publish(self, staged: Path, manifest: Manifest) -> Manifest:
        """See Storage."""
        (staged / MANIFEST_NAME).write_bytes(manifest.model_dump_json(indent=1).encode())
        for name in (*manifest.files, MANIFEST_NAME):
            fsync(staged / name)
        fsync(staged)
        final = staged.parent / checkpoint_name(manifest.step)
        # Fails where the name is taken: a directory that is not empty cannot be renamed over.
        staged.rename(final)
        try:
            fsync(final.parent)
        except OSError:
            # A name that might be gone after a power loss must not be announced.
            shutil.rmtree(final, ignore_errors=True)
            raise
        return manifest

    def open(self, manifest: Manifest, name: str) -> LocalFile:
        """See Storage."""
        return open_plain(self._checkpoints(manifest.job_id) / checkpoint_name(manifest.step) / name)

    def remove(self, job_id: str, step: int, *, unless_pinned: bool) -> bool:
        """See Storage.

        Whoever pins looks afterwards whether the checkpoint is still there; whoever deletes hides it first, and looks for a pin
        afterwards. So one of the two sees the other.
        """
        directory = self._checkpoints(job_id) / checkpoint_name(step)
        hidden = directory.with_name(f"{DELETED_PREFIX}{directory.name}-{secrets.token_hex(4)}")
        try:
            directory.rename(hidden)
        except FileNotFoundError:
            return False
        if unless_pinned and step in self.pins(job_id):
            hidden.rename(directory)
            return False
        fsync(directory.parent)
        shutil.rmtree(hidden, ignore_errors=True)
        return True

    def sweep(self, job_id: str) -> None:
        """See Storage."""
        for prefix in (TEMPORARY_PREFIX, DELETED_PREFIX):
            for directory in self._checkpoints(job_id).glob(f"{prefix}*"):
                shutil.rmtree(directory, ignore_errors=True)

    def delete(self, job_id: str) -> None:
        """See Storage."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._checkpoints(job_id).parent)

    def pins(self, job_id: str) -> set[int]:
        """See Storage."""
        return _steps(self.root / pins_directory(job_id))

    def pin(self, job_id: str, step: int) -> None:
        """See Storage."""
        self._put(self._pin(job_id, step))

    def unpin(self, job_id: str, step: int) -> None:
        """See Storage."""
        self._pin(job_id, step).unlink(missing_ok=True)

    def put_code(self, sha256: str, archive: bytes) -> None:
        """See Storage."""
        target = self.root / code_name(sha256)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(archive)
            # The ranks may run as another user than the controller.
            Path(temporary).chmod(0o644)
            fsync(Path(temporary))
            Path(temporary).rename(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        fsync(target.parent)

    def read_code(self, sha256: str) -> bytes:
        """See Storage."""
        return (self.root / code_name(sha256)).read_bytes()

    def remove_code(self, sha256: str) -> None:
        """See Storage."""
        (self.root / code_name(sha256)).unlink(missing_ok=True)

    def mark(self, name: str) -> None:
        """See Storage."""
        self._put(self.root / name)

    def is_marked(self, name: str) -> bool:
        """See Storage."""
        return (self.root / name).is_file()

    def unmark(self, name: str) -> None:
        """See Storage."""
        (self.root / name).unlink(missing_ok=True)

    def _checkpoints(self, job_id: str) -> Path:
        return self.root / checkpoints_directory(job_id)

    def _pin(self, job_id: str, step: int) -> Path:
        return self.root / pins_directory(job_id) / checkpoint_name(step)

    def _put(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        fsync(path.parent)


def published(parent: Path) -> dict[int, Manifest]:
    """Return the manifests of all published checkpoints in a directory, by step; what has no readable manifest of its name is none."""
    found = {}
    for step in sorted(_steps(parent)):
        with suppress(OSError, ValueError):
            manifest = Manifest.model_validate_json((parent / checkpoint_name(step) / MANIFEST_NAME).read_bytes())
            if manifest.step == step:
                found[step] = manifest
    return found


def open_plain(path: Path) -> LocalFile:
    """Open a file for reading. Links are not followed, and what is no plain file is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no plain file")
    return LocalFile(descriptor, status.st_size)


def fsync(path: Path) -> None:
    """Have a file or a directory reach the disk.

    A file that another descriptor wrote: Linux reports a failed write-back to the first who asks, also one that opened it afterwards.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(parent: Path) -> set[int]:
    return {step for name in _names(parent) if (step := step_of(name)) is not None}


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
