"""The checkpoints of a job as files: which is meant, which is best, and opening what a manifest lists, and nothing else."""

import asyncio
import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.errors import DamagedError, NotFoundError
from service.store.records import Checkpoint
from service.store.store import Store
from worker.contract import best_step, checkpoint_name, checkpoints_directory

MANIFEST_NAME: Final = "manifest.json"
CHUNK_BYTES: Final = 2**20
# A manifest comes from a rank; a name in it that could lead elsewhere is no name.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Listed:
    """A checkpoint among the others of its job."""

    checkpoint: Checkpoint
    is_best: bool
    is_latest: bool


@dataclass(frozen=True)
class OpenedFile:
    """A file of a checkpoint, open, of exactly the size that the manifest says. Stays whole if the checkpoint is pruned meanwhile."""

    name: str
    size: int
    sha256: str
    file: io.FileIO


class Artifacts:
    """The catalogue of the store and the files under the storage root, together."""

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._root = root

    async def of(self, job_id: str) -> list[Listed]:
        """Return a job's checkpoints, newest first."""
        job = await self._store.jobs.get(job_id)
        found = await self._store.checkpoints.of(job_id)
        metric = None if job is None else job.spec.checkpoint.keep_best
        best = best_step((checkpoint.manifest for checkpoint in found), metric)
        return [Listed(checkpoint, checkpoint.step == best, index == 0) for index, checkpoint in enumerate(found)]

    async def find(self, job_id: str, step: str) -> Checkpoint:
        """Return one checkpoint.

        Args:
            job_id: the job.
            step: a number, `latest` or `best`.
        Raises:
            NotFoundError: there is none such.
        """
        found = await (self._chosen(job_id, step) if step in {"latest", "best"} else self._store.checkpoints.get(job_id, int(step)))
        if found is None:
            expected = f"expected a step that is listed; GET /v1/jobs/{job_id}/checkpoints lists them"
            raise NotFoundError(f"checkpoint {step} of {job_id} is not here; {expected}", code="checkpoint_not_found")
        return found

    async def open(self, checkpoint: Checkpoint, name: str) -> OpenedFile:
        """Open one file.

        Raises:
            NotFoundError: the manifest has no such name, or the checkpoint has been pruned.
            DamagedError: the file is missing, is no plain file, or has another size than the manifest says.
        """
        return await asyncio.to_thread(_open, self._directory(checkpoint), checkpoint, name)

    async def open_all(self, checkpoint: Checkpoint) -> list[OpenedFile]:
        """Open the manifest and every file that it lists, in order. Raises as `open` does."""
        opened: list[OpenedFile] = []
        try:
            for name in (MANIFEST_NAME, *sorted(checkpoint.manifest.files)):
                opened += [await self.open(checkpoint, name)]
        except BaseException:
            close_all(opened)
            raise
        return opened

    async def delete(self, job_id: str) -> None:
        """Delete every file of a job. A job without files is none to worry about."""
        directory = self._root / checkpoints_directory(job_id).parent
        await asyncio.to_thread(_remove_tree, directory)

    async def _chosen(self, job_id: str, which: str) -> Checkpoint | None:
        for listed in await self.of(job_id):
            if listed.is_latest if which == "latest" else listed.is_best:
                return listed.checkpoint
        return None

    def _directory(self, checkpoint: Checkpoint) -> Path:
        return self._root / checkpoints_directory(checkpoint.job_id) / checkpoint_name(checkpoint.step)


async def read_chunks(opened: OpenedFile, start: int, end: int) -> AsyncIterator[bytes]:
    """Yield the bytes from `start` up to, not including, `end`. Does not close the file.

    Raises:
        DamagedError: the file became shorter; the connection breaks off and nobody takes the part for the whole.
    """
    position = start
    while position < end:
        chunk = await asyncio.to_thread(os.pread, opened.file.fileno(), min(CHUNK_BYTES, end - position), position)
        if not chunk:
            raise DamagedError(f"file {opened.name} became shorter while it was read")
        position += len(chunk)
        yield chunk


def close_all(opened: Sequence[OpenedFile]) -> None:
    """Close files."""
    for one in opened:
        one.file.close()


def _open(directory: Path, checkpoint: Checkpoint, name: str) -> OpenedFile:
    entry = checkpoint.manifest.files.get(name)
    if (entry is None and name != MANIFEST_NAME) or not _PLAIN_NAME.fullmatch(name):
        expected = ", ".join((MANIFEST_NAME, *sorted(checkpoint.manifest.files)))
        raise NotFoundError(f"file {name!r} is not in the checkpoint; expected one of {expected}", code="file_not_found")
    if not directory.is_dir():
        raise NotFoundError(f"checkpoint {checkpoint.step} of {checkpoint.job_id} has been removed", code="checkpoint_not_found")
    try:
        file = io.FileIO(os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise DamagedError(f"file {name} of checkpoint {checkpoint.step} cannot be opened: {error.strerror}") from error
    status = os.fstat(file.fileno())
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise DamagedError(f"file {name} of checkpoint {checkpoint.step} is no plain file; use another checkpoint")
    if entry is None:
        return OpenedFile(name, size, hashlib.sha256(os.pread(file.fileno(), size, 0)).hexdigest(), file)
    if size != entry.size:
        file.close()
        raise DamagedError(f"file {name} of checkpoint {checkpoint.step} has {size} bytes; its manifest says {entry.size}; use another one")
    return OpenedFile(name, size, entry.sha256, file)


def _remove_tree(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
