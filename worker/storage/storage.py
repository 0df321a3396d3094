"""What worker and service ask of a storage. Owns the interface and the rules on which every implementation agrees.

The rules: a checkpoint is what a manifest names, and its manifest is written last. A name that was published is never overwritten. What has
no manifest is nothing, and is swept away once its writer is known to be gone. A pinned checkpoint is never deleted by a rule.

Errors are OSErrors, as those of files are: FileNotFoundError where something is not there,
StorageUnreachableError where it could not be asked.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from worker.contract.manifest import Manifest


class StorageUnreachableError(OSError):
    """An object store did not do as it was asked: no connection, no right, no such bucket. Trying again may help."""


class Identity(NamedTuple):
    """What tells an open file from every other, and from itself before it was last written to."""

    device: int
    number: int
    size: int
    modified_ns: int
    changed_ns: int

    @property
    def changed_at(self) -> float:
        """When it was last written to, renamed or linked, seconds since the epoch, by the file system's clock. Nobody can set it."""
        return self.changed_ns / 1e9


class OpenFile(Protocol):
    """A file of a checkpoint, open for reading at any place, by any thread."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""

    def identity(self) -> Identity | None:
        """Return what changes whenever the file is written to; None where the storage cannot say."""

    def fileno(self) -> int | None:
        """Return the descriptor of a file that the kernel can read by itself; None where the bytes come from elsewhere."""

    def read(self, start: int, length: int) -> bytes:
        """Return the bytes from `start` on, fewer than `length` only where the file ends."""

    def close(self) -> None:
        """Let go of the file."""


class Storage(Protocol):
    """The checkpoints of all jobs."""

    @property
    def address(self) -> str:
        """By which `open_storage` finds it on another node. Holds no secret."""

    def published(self, job_id: str) -> dict[int, Manifest]:
        """Return the manifests of a job's checkpoints by step, oldest first; what has no readable manifest of its own name is none."""

    def steps(self, job_id: str) -> set[int]:
        """Return the steps that `published` may have, without reading a manifest: cheap."""

    def jobs(self) -> list[str]:
        """Return the ids of all jobs that have anything here."""

    def staging(self, draft: Manifest) -> AbstractContextManager[Path]:
        """Lend an empty local directory for the files of a new checkpoint; what is in it afterwards is gone, unless it was published."""

    def publish(self, staged: Path, manifest: Manifest) -> Manifest:
        """Make a staged checkpoint durable, then visible in one step.

        Returns:
            The manifest that readers see: another one where another writer was first or is of a later attempt.
        Raises:
            FileExistsError: the name is taken.
            OSError: nothing was published.
        """

    def open(self, manifest: Manifest, name: str) -> OpenFile:
        """Open a file of a checkpoint, `manifest.json` too."""

    def remove(self, job_id: str, step: int, *, unless_pinned: bool) -> bool:
        """Delete a checkpoint, hidden first, so that no reader meets half of one; return whether there was one to delete."""

    def sweep(self, job_id: str) -> None:
        """Delete what dead writers left behind. Only for the one who writes here now, or when nobody does."""

    def delete(self, job_id: str) -> None:
        """Delete everything of a job."""

    def pins(self, job_id: str) -> set[int]:
        """Return the steps that are pinned."""

    def pin(self, job_id: str, step: int) -> None:
        """Keep a checkpoint from every rule that deletes."""

    def unpin(self, job_id: str, step: int) -> None:
        """Leave a checkpoint to the rules again; nothing happens where it is not pinned."""

    def put_code(self, sha256: str, archive: bytes) -> None:
        """Store an archive of code under its digest, durably and whole or not at all; nothing happens where it is here already."""

    def read_code(self, sha256: str) -> bytes:
        """Return a stored archive of code."""

    def remove_code(self, sha256: str) -> None:
        """Delete a stored archive of code, if it is here."""

    def mark(self, name: str) -> None:
        """Write a marker, by which ranks see that they share this storage with the controller."""

    def is_marked(self, name: str) -> bool:
        """Return whether a marker is here."""

    def unmark(self, name: str) -> None:
        """Remove a marker, if it is here."""
