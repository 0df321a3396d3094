"""Packs a directory of code for upload: the same bytes for the same files, without version control, caches and environments."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.client.errors import PackError
from worker.contract.bundle import BundleError, Names, write_tar

SKIPPED: Final = frozenset(
    {
        ".git", ".hg", ".svn", ".jj", "__pycache__", ".venv", "venv", "node_modules", ".tox", ".nox", ".eggs", ".idea", ".vscode",
        ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", ".DS_Store",
    }
)  # fmt: skip
"""Names of files and directories that nobody means by their code."""


def bundle(path: Path) -> tuple[bytes, str]:
    """Return what to upload of a directory, which is packed, or of a .zip or .tar.gz; and its media type.

    Raises:
        PackError: it cannot be packed or read.
    """
    is_zip = path.suffix.lower() == ".zip" and path.is_file()
    try:
        content = pack(path) if path.is_dir() else path.read_bytes()
    except OSError as error:
        raise PackError(f"{path} cannot be read: {error.strerror}; expected a directory, a .zip or a .tar.gz") from error
    return content, "application/zip" if is_zip else "application/gzip"


def pack(directory: Path) -> bytes:
    """Return a directory as a tar.gz.

    Raises:
        PackError: it is no directory, holds nothing, a link or a device, or more than a bundle may.
    """
    names = Names()
    files: dict[str, bytes] = {}
    try:
        for path in _files(directory):
            name = path.relative_to(directory).as_posix()
            if not path.is_file() or path.is_symlink():
                raise PackError(f"{path} is a link or the like; expected plain files; put the file itself there, or leave it out")
            files[names.file(name, path.stat().st_size)] = path.read_bytes()
    except BundleError as error:
        raise PackError(f"{directory} cannot be packed: {error}") from error
    except OSError as error:
        raise PackError(f"{error.filename or directory} cannot be read: {error.strerror}") from error
    if not files:
        raise PackError(f"{directory} holds no file; expected a directory with Python packages")
    return gzip.compress(write_tar(files), mtime=0)


def _files(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(directory, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*names, *links]) if name not in SKIPPED and not name.endswith((".pyc", ".pyo")))
