"""Uploaded code on a rank: reads the archive from the storage, checks it once more, and has it importable. Owns the scratch directories.

A scratch directory is removed at the end of the rank; one whose rank was killed, by the next rank on the node: the lock on it, which the
kernel lets go of with its holder, says whether anybody is there.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.contract.bundle import BundleError, code_name, read_tar
from worker.errors import TaskError
from worker.storage.storage import Storage

PREFIX: Final = "syncbn-code-"
_NEW: Final = ".syncbn-new-"


@contextlib.contextmanager
def importable(storage: Storage, code_sha256: str | None) -> Iterator[None]:
    """Have the modules of uploaded code importable inside the block; without code, do nothing.

    They come last on the search path: a file `json.py` in somebody's bundle does not replace the one that the rank needs.

    Args:
        storage: where it was stored.
        code_sha256: which archive.
    Raises:
        TaskError: the archive is gone, is not what was uploaded, or holds what no bundle may hold.
    """
    if code_sha256 is None:
        yield
        return
    files = _read(storage, code_sha256)
    remove_abandoned()
    with _scratch() as folder:
        _write(folder, files)
        sys.path.append(str(folder))
        try:
            yield
        finally:
            sys.path.remove(str(folder))


def remove_abandoned() -> None:
    """Remove the scratch directories of this user's ranks that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _opened(folder) as descriptor:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def _read(storage: Storage, sha256: str) -> dict[str, bytes]:
    path = code_name(sha256)
    try:
        data = storage.read_code(sha256)
    except OSError as error:
        raise TaskError(f"the uploaded code {path} cannot be read ({error}); upload it again and submit the job anew") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise TaskError(f"the uploaded code {path} is not what was uploaded; expected the digest {sha256}; upload it again")
    try:
        return read_tar(data)
    except BundleError as error:
        raise TaskError(f"the uploaded code {path} is refused: {error}") from error


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Hold a directory of this rank's own, locked."""
    unlocked = Path(tempfile.mkdtemp(prefix=_NEW))
    with _opened(unlocked) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Under its name only once it is locked: before, the next rank would take it for abandoned.
        folder = unlocked.rename(unlocked.with_name(PREFIX + unlocked.name.removeprefix(_NEW)))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file each, through no link: the directory was empty, and the names are plain and different.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
