"""This node's copies of data from object stores. Owns what is copied, when, and where it lies; reads no format.

A URI stands for the objects that are listed under it at the moment. They are copied once, before training, into a directory that is named
by the listing: all ranks of a node, and later jobs, read the same copy, and a set that has changed gets another. A copy is there when all
of it is; nothing removes it but the operator. So every format is read as from a disk: mapped, by offset, in any order.
"""

import fcntl
import hashlib
import json
import os
import posixpath
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from worker.contract.rules import is_object_uri
from worker.data.records import copies
from worker.errors import DataError
from worker.settings import read_settings
from worker.storage.opening import open_filesystem
from worker.storage.profiles import StorageConfigError, find_profile

NUM_STREAMS: Final = 8
"""Objects that are copied at once."""
CHUNK_BYTES: Final = 8 << 20


def mirrored(path: str, profile: str, *, is_deep: bool) -> str:
    """Return where on this node the data of a path lies: as it is, or the copy of what a URI names, made where there is none yet.

    Args:
        path: a file, a directory or a pattern; or their URI.
        profile: by which the store is asked; empty: by this node's own credentials.
        is_deep: what lies in directories of a directory belongs to it.
    Raises:
        DataError: it may not be read, is not there, or does not fit on the disk; or this node is not set up for the store.
        OSError: the store does not answer.
    """
    if not is_object_uri(path):
        if Path(path).resolve().is_relative_to(copies()):
            raise DataError(f"data.path {path} lies among this node's copies; expected the URI that it was copied from; give that")
        return path
    scheme, _, place = path.rstrip("/").partition("://")
    try:
        way = find_profile(profile)
        _require_allowed(path.rstrip("/"), profile, way.data if profile else read_settings().data_roots)
        filesystem = open_filesystem(scheme, way, profile)
    except StorageConfigError as error:
        raise DataError(f"data.path {path} cannot be read on this node: {error}") from error
    objects, shown = _listed(filesystem, place, is_deep=is_deep)
    if not objects:
        raise DataError(f"data.path {path} has no object; expected some; check the bucket and the prefix")
    parent = posixpath.dirname(place)
    wanted = [(info.path.removeprefix(f"{parent}/" if parent else ""), info) for info in objects]
    return str(_copy(path, filesystem, profile, wanted) / shown)


def _require_allowed(uri: str, profile: str, roots: Sequence[str]) -> None:
    """Refuse what lies outside of the roots; a way that has none, with a name, leads to no data."""
    if (roots or profile) and not any(uri == root or uri.startswith(f"{root}/") for root in (root.rstrip("/") for root in roots)):
        where = f"`data` of the storage profile {profile!r}" if profile else "SYNCBN_DATA_ROOTS"
        raise DataError(f"data.path {uri} may not be read; expected one below {' or '.join(roots) or 'none'}; move it or extend {where}")


def _listed(filesystem: Any, place: str, *, is_deep: bool) -> tuple[list[Any], str]:
    """Return the objects that a place stands for, in the order of their names, and its path from its parent's."""
    from pyarrow import fs

    parent, name = posixpath.split(place)
    if any(sign in name for sign in "*["):
        # The directory of the pattern is listed, and is in the copy.
        found = filesystem.get_file_info(fs.FileSelector(parent, allow_not_found=True))
        chosen = [info for info in found if info.is_file and fnmatchcase(info.base_name, name)]
        return sorted(chosen, key=lambda info: info.path), name
    if parent and (info := filesystem.get_file_info(place)).is_file:
        return [info], name
    found = filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True, recursive=is_deep))
    return sorted((info for info in found if info.is_file), key=lambda info: info.path), name


def _copy(uri: str, filesystem: Any, profile: str, wanted: Sequence[tuple[str, Any]]) -> Path:
    """Return the directory with the copy of the objects, each under its path; of several processes one copies, the others wait for it."""
    root = _own(copies())
    listing = [(path, info.size, info.mtime_ns) for path, info in wanted]
    name = hashlib.sha256(json.dumps([uri, profile, listing]).encode()).hexdigest()[:16]
    target = root / name
    with _alone(root / f"{name}.lock"):
        if not target.is_dir():
            total = sum(size for _, size, _ in listing)
            if total > (free := shutil.disk_usage(root).free):
                raise DataError(
                    f"data.path {uri} has {total} bytes, and {root} has room for {free}; expected room for a copy; free some, or set"
                    " SYNCBN_DATA_CACHE to a larger disk"
                )
            partial = root / f"{name}.part"
            shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
            partial.mkdir()
            with ThreadPoolExecutor(NUM_STREAMS) as pool:
                list(pool.map(lambda one: _fetch(filesystem, one[1], partial / _safe(one[0])), wanted))
            partial.rename(target)
    return target


def _fetch(filesystem: Any, info: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with filesystem.open_input_stream(info.path) as source, file.open("xb") as sink:
        shutil.copyfileobj(source, sink, CHUNK_BYTES)
        sink.flush()
        os.fsync(sink.fileno())
    if file.stat().st_size != info.size:
        raise DataError(f"object {info.path} has {file.stat().st_size} bytes; expected the {info.size} that were listed; do not change it")


def _safe(path: str) -> str:
    """Return the path of an object if it is one of a file; keys may be anything."""
    if {"", ".", ".."} & set(path.split("/")):
        raise DataError(f"object {path!r} has no name that a file could have; expected one without . and ..; rename it")
    return path


def _own(root: Path) -> Path:
    """Return the directory of copies, made where it is missing; refuse one that somebody else has made, who could change what is read."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if root.stat().st_uid != os.getuid():
        raise DataError(f"{root} is another user's; expected this node's copies of data to be this user's; set SYNCBN_DATA_CACHE")
    return root


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep other processes out; whoever dies lets them in."""
    with lock.open("w") as held:
        # Without a bound of its own: whoever holds it waits for the store's answers, which have one.
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
