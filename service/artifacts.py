"""The checkpoints of a job as files: which is meant, best or pinned, and opening what a manifest lists, and nothing else."""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import ConflictError, DamagedError, NotFoundError
from service.states import TERMINAL
from service.store.records import Checkpoint
from service.store.store import Store
from worker.contract import best_step
from worker.contract.manifest import MANIFEST_NAME, Manifest
from worker.storage.storage import OpenFile, Storage, StorageUnreachableError
from worker.storage.tensors import Bytes, TensorFile, TensorFileError, statistics_of

MODEL_NAME: Final = "model.safetensors"
STATISTICS_NAME: Final = "statistics.safetensors"
# A manifest comes from a rank; a name in it that could lead elsewhere is no name.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Listed:
    """A checkpoint among the others of its job."""

    checkpoint: Checkpoint
    is_best: bool
    is_latest: bool
    is_pinned: bool


@dataclass(frozen=True)
class OpenedFile:
    """A file of a checkpoint, open, of exactly the size that the manifest says. In a directory it stays whole if pruned meanwhile."""

    name: str
    size: int
    sha256: str
    file: OpenFile


class Artifacts:
    """The catalogue of the store and the files in the storage, together."""

    def __init__(self, store: Store, storage: Storage) -> None:
        self._store = store
        self._storage = storage

    async def of(self, job_id: str) -> list[Listed]:
        """Return a job's checkpoints, newest first."""
        found = await self._store.checkpoints.of(job_id)
        pins = await asyncio.to_thread(self._storage.pins, job_id) if found else set()
        return await self._listed(job_id, found, pins)

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
            raise _missing(job_id, step)
        return found

    async def open(self, checkpoint: Checkpoint, name: str) -> OpenedFile:
        """Open one file.

        Raises:
            NotFoundError: the manifest has no such name, or the checkpoint has been pruned.
            DamagedError: the file is missing, is no plain file, or has another size than the manifest says.
        """
        return await asyncio.to_thread(_open, self._storage, checkpoint, name)

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

    async def open_statistics(self, checkpoint: Checkpoint) -> OpenedFile:
        """Return the running statistics alone as a safetensors file; of the model only the ranges that hold them are read.

        Raises:
            NotFoundError: the checkpoint has been pruned.
            DamagedError: the model is not what its manifest says, as far as it was read.
        """
        return await asyncio.to_thread(_open_statistics, self._storage, checkpoint)

    async def pin(self, job_id: str, step: str) -> Listed:
        """Keep a checkpoint from being pruned; doing it again changes nothing. Raises NotFoundError where it is gone."""
        checkpoint = await self.find(job_id, step)
        await asyncio.to_thread(self._storage.pin, job_id, checkpoint.step)
        # Looked for after the pin: whoever prunes hides the checkpoint first and looks for a pin afterwards, so one of us sees the other.
        if checkpoint.step not in await asyncio.to_thread(self._storage.steps, job_id):
            await asyncio.to_thread(self._storage.unpin, job_id, checkpoint.step)
            raise _missing(job_id, step)
        return await self._one(checkpoint)

    async def unpin(self, job_id: str, step: str) -> Listed:
        """Leave a checkpoint to the retention rule again; doing it again changes nothing."""
        checkpoint = await self.find(job_id, step)
        await asyncio.to_thread(self._storage.unpin, job_id, checkpoint.step)
        return await self._one(checkpoint)

    async def remove(self, job_id: str, step: str) -> None:
        """Delete one checkpoint.

        Raises:
            NotFoundError: there is none such.
            ConflictError: it is pinned, or it is what a job that has not ended would be resumed from.
        """
        checkpoint = await self.find(job_id, step)
        listed, job = await self._one(checkpoint), await self._store.jobs.get(job_id)
        if listed.is_pinned:
            raise ConflictError(
                f"checkpoint {checkpoint.step} of {job_id} is pinned; expected one that is not; remove the pin first",
                code="checkpoint_pinned",
            )
        if listed.is_latest and job is not None and job.state not in TERMINAL:
            raise ConflictError(
                f"checkpoint {checkpoint.step} is the newest of {job_id}, which is {job.state} and would be resumed from it; expected an"
                " older one; cancel the job first, or wait for the next checkpoint",
                code="checkpoint_in_use",
            )
        await asyncio.to_thread(self._storage.remove, job_id, checkpoint.step, unless_pinned=False)
        await self._store.checkpoints.drop(job_id, checkpoint.step)

    async def delete(self, job_id: str) -> None:
        """Delete every file of a job. A job without files is none to worry about."""
        await asyncio.to_thread(self._storage.delete, job_id)

    async def _chosen(self, job_id: str, which: str) -> Checkpoint | None:
        for listed in await self._listed(job_id, await self._store.checkpoints.of(job_id), set()):
            if listed.is_latest if which == "latest" else listed.is_best:
                return listed.checkpoint
        return None

    async def _one(self, checkpoint: Checkpoint) -> Listed:
        for listed in await self.of(checkpoint.job_id):
            if listed.checkpoint.step == checkpoint.step:
                return listed
        raise _missing(checkpoint.job_id, str(checkpoint.step))

    async def _listed(self, job_id: str, found: Sequence[Checkpoint], pins: set[int]) -> list[Listed]:
        job = await self._store.jobs.get(job_id)
        metric = None if job is None else job.spec.checkpoint.keep_best
        best = best_step((checkpoint.manifest for checkpoint in found), metric)
        return [Listed(checkpoint, checkpoint.step == best, index == 0, checkpoint.step in pins) for index, checkpoint in enumerate(found)]


def close_all(opened: Sequence[OpenedFile]) -> None:
    """Close files."""
    for one in opened:
        one.file.close()


def _open(storage: Storage, checkpoint: Checkpoint, name: str) -> OpenedFile:
    entry = checkpoint.manifest.files.get(name)
    if (entry is None and name != MANIFEST_NAME) or not _PLAIN_NAME.fullmatch(name):
        expected = ", ".join((MANIFEST_NAME, *sorted(checkpoint.manifest.files)))
        raise NotFoundError(f"file {name!r} is not in the checkpoint; expected one of {expected}", code="file_not_found")
    try:
        file = storage.open(checkpoint.manifest, name)
    except StorageUnreachableError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and checkpoint.step not in storage.steps(checkpoint.job_id):
            raise NotFoundError(
                f"checkpoint {checkpoint.step} of {checkpoint.job_id} has been removed; expected one that is listed; list them again",
                code="checkpoint_not_found",
            ) from error
        raise DamagedError(f"file {name} of checkpoint {checkpoint.step} cannot be opened: {error.strerror or error}") from error
    if entry is None:
        return _manifest_file(checkpoint, file)
    if file.size != entry.size:
        size = file.size
        file.close()
        raise DamagedError(f"file {name} of checkpoint {checkpoint.step} has {size} bytes; its manifest says {entry.size}; use another one")
    return OpenedFile(name, entry.size, entry.sha256, file)


def _manifest_file(checkpoint: Checkpoint, file: OpenFile) -> OpenedFile:
    """Return the manifest as it lies in the storage, compared with the catalogue, because it lists no digest of its own."""
    content = file.read(0, file.size)
    file.close()
    try:
        is_right = Manifest.model_validate_json(content) == checkpoint.manifest
    except ValueError:
        is_right = False
    if not is_right:
        raise DamagedError(f"file {MANIFEST_NAME} of checkpoint {checkpoint.step} is not the one of the catalogue; use another checkpoint")
    return OpenedFile(MANIFEST_NAME, len(content), hashlib.sha256(content).hexdigest(), Bytes(content))


def _open_statistics(storage: Storage, checkpoint: Checkpoint) -> OpenedFile:
    opened = _open(storage, checkpoint, MODEL_NAME)
    try:
        content = statistics_of(TensorFile.read(opened.file), [layer.name for layer in checkpoint.manifest.layers])
    except TensorFileError as error:
        raise DamagedError(f"file {MODEL_NAME} of checkpoint {checkpoint.step} is damaged: {error}; use another one") from error
    finally:
        opened.file.close()
    found, promised = hashlib.sha256(content).hexdigest(), checkpoint.manifest.statistics
    if promised is not None and found != promised.sha256:
        raise DamagedError(
            f"statistics of checkpoint {checkpoint.step} have sha256 {found}; its manifest says {promised.sha256}; use another one"
        )
    return OpenedFile(STATISTICS_NAME, len(content), found, Bytes(content))


def _missing(job_id: str, step: str) -> NotFoundError:
    expected = f"expected a step that is listed; GET /v1/jobs/{job_id}/checkpoints lists them"
    return NotFoundError(f"checkpoint {step} of {job_id} is not here; {expected}", code="checkpoint_not_found")
