"""A checkpoint's files onto this disk: resumed, verified while they are written, and in place only when whole.

DIRECTORY/NAME.part     what has arrived so far; a later run goes on from there
DIRECTORY/NAME          whole: size and SHA-256 as in the manifest, fsynced, renamed into place
DIRECTORY/manifest.json written last, so a directory that has it is a whole checkpoint
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.client.errors import DownloadError, IntegrityError
from service.client.part import Part, sha256_of
from service.client.transport import Transport

MANIFEST_NAME = "manifest.json"
_FILE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}\Z")

Progress = Callable[[str, int, int], None]
"""Called with a file's name, its bytes on disk so far and its size; also while an existing file is verified."""


@dataclass(frozen=True)
class Wanted:
    """One file as the manifest promises it."""

    name: str
    size: int
    sha256: str
    path: str
    """Of its route."""


def fetch_checkpoint(
    transport: Transport, route: str, manifest: Mapping[str, Any], directory: Path, progress: Progress = lambda *_: None
) -> None:
    """Bring every file of a manifest into a directory; whole files that are there already are only verified.

    Raises:
        IntegrityError: a file's bytes are not those of the manifest; the bad part is deleted.
        DownloadError: the connection kept breaking; run again to go on.
    """
    wanted = [_wanted(route, name, entry) for name, entry in manifest["files"].items()]
    directory.mkdir(parents=True, exist_ok=True)
    _retire(directory / MANIFEST_NAME, manifest)
    for file in wanted:
        if not _is_whole(file, directory / file.name, progress):
            _fetch(transport, file, directory, progress)
    _publish_manifest(directory, manifest)


def _wanted(route: str, name: str, entry: Mapping[str, Any]) -> Wanted:
    if not _FILE_NAME.match(name) or name == MANIFEST_NAME or name.endswith(".part"):
        raise IntegrityError(f"the manifest names a file {name[:80]!r}; expected a plain file name; do not trust this service")
    return Wanted(name, int(entry["size"]), str(entry["sha256"]), f"{route}/files/{name}")


def _retire(path: Path, manifest: Mapping[str, Any]) -> None:
    """Remove the manifest of another checkpoint: its files are about to be replaced, one by one."""
    with suppress(FileNotFoundError):
        try:
            is_same = json.loads(path.read_bytes()) == manifest
        except ValueError:
            is_same = False
        if not is_same:
            path.unlink()


def _is_whole(file: Wanted, path: Path, progress: Progress) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return sha256_of(path, lambda size: progress(file.name, size, file.size)) == file.sha256


def _fetch(transport: Transport, file: Wanted, directory: Path, progress: Progress) -> None:
    with Part(directory / file.name) as part:
        try:
            was_fresh = part.size == 0
            is_right = _fill(transport, file, part, progress)
            if not is_right and not was_fresh:
                # The part of an earlier run may be of another file or damaged: once more, from the first byte.
                part.restart()
                is_right = _fill(transport, file, part, progress)
            if not is_right:
                raise IntegrityError(
                    f"{file.name} arrived as SHA-256 {part.sha256}; expected the manifest's {file.sha256}; deleted: download it again"
                )
        except IntegrityError:
            part.discard()
            raise
        part.publish()
    progress(file.name, file.size, file.size)


def _fill(transport: Transport, file: Wanted, part: Part, progress: Progress) -> bool:
    """Append what is missing, over as many connections as it takes, and return whether the digest is right."""
    failures = 0
    while part.size < file.size:
        before, cause = part.size, "the answer ended early"
        try:
            _receive(transport, file, part, progress)
        except httpx.TransportError as error:
            cause = str(error) or type(error).__name__
        failures = 0 if part.size > before else failures + 1
        if part.size < file.size and failures >= transport.patience.tries:
            raise DownloadError(
                f"{file.name} stopped at {part.size} of {file.size} bytes ({cause}); run the download again to go on from there"
            )
    return part.size == file.size and part.sha256 == file.sha256


def _receive(transport: Transport, file: Wanted, part: Part, progress: Progress) -> None:
    """Append one answer to the part; an answer that cannot be of the manifest's file is refused before a byte is written."""
    headers = {"Accept-Encoding": "identity"}
    if part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": f'"{file.sha256}"'}
    with transport.stream(file.path, headers=headers) as response:
        _refuse_other_file(response, file)
        if response.status_code != 206:  # the whole file, whatever was asked for
            part.restart()
        elif not response.headers.get("content-range", "").startswith(f"bytes {part.size}-"):
            sent = response.headers.get("content-range")
            raise DownloadError(f"{file.name} came as {sent!r}; expected bytes from {part.size}; delete {part.path} and try again")
        # As they come: collected into larger chunks, what has arrived of the last one would be lost with the connection.
        for chunk in response.iter_raw():
            if part.size + len(chunk) > file.size:
                raise IntegrityError(f"{file.name} is longer than the {file.size} bytes of the manifest; it was deleted: download it again")
            part.append(chunk)
            progress(file.name, part.size, file.size)


def _refuse_other_file(response: httpx.Response, file: Wanted) -> None:
    tag = response.headers.get("etag", "").removeprefix("W/").strip('"')
    if tag and tag != file.sha256:
        raise IntegrityError(
            f"{file.name} is {tag} on the service now; expected {file.sha256} as in the manifest; download the checkpoint again"
        )


def _publish_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    with Part(directory / MANIFEST_NAME) as part:
        part.restart()
        part.append(json.dumps(manifest, indent=2).encode())
        part.publish()
