"""The files of a checkpoint as its manifest promises them, and what of an answer may be believed. Pure but for the look at a directory.

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
from service.client.part import Part

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

    def headers(self, part: Part) -> dict[str, str]:
        """Return what the request for the rest of the file says."""
        whole = {"Accept-Encoding": "identity"}
        return whole | {"Range": f"bytes={part.size}-", "If-Range": f'"{self.sha256}"'} if part.size else whole

    def accept(self, response: httpx.Response, part: Part) -> None:
        """Refuse an answer that cannot be of this file before a byte of it is written; forget the part where the whole file comes."""
        tag = response.headers.get("etag", "").removeprefix("W/").strip('"')
        if tag and tag != self.sha256:
            raise IntegrityError(
                f"{self.name} is {tag} on the service now; expected {self.sha256} as in the manifest; download the checkpoint again"
            )
        sent = response.headers.get("content-range", "")
        if response.status_code != httpx.codes.PARTIAL_CONTENT:  # the whole file, whatever was asked for
            part.restart()
        elif not sent.startswith(f"bytes {part.size}-"):
            raise DownloadError(f"{self.name} came as {sent!r}; expected bytes from {part.size}; delete {part.path} and try again")

    def append(self, chunk: bytes, part: Part) -> None:
        """Add bytes to the part, and no more than the manifest promises."""
        if part.size + len(chunk) > self.size:
            raise IntegrityError(f"{self.name} is longer than the {self.size} bytes of the manifest; it was deleted: download it again")
        part.append(chunk)

    def is_in(self, part: Part) -> bool:
        """Return whether the part is the whole file."""
        return part.size == self.size and part.sha256 == self.sha256


def wanted_files(route: str, manifest: Mapping[str, Any]) -> list[Wanted]:
    """Return the files of a manifest, or raise IntegrityError where it names one that would lie elsewhere."""
    return [_wanted(route, name, entry) for name, entry in manifest["files"].items()]


def _wanted(route: str, name: str, entry: Mapping[str, Any]) -> Wanted:
    if not _FILE_NAME.match(name) or name == MANIFEST_NAME or name.endswith(".part"):
        raise IntegrityError(f"the manifest names a file {name[:80]!r}; expected a plain file name; do not trust this service")
    return Wanted(name, int(entry["size"]), str(entry["sha256"]), f"{route}/files/{name}")


def make_room(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Make the directory, and remove another checkpoint's manifest: its files are about to be replaced, one by one."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / MANIFEST_NAME
    with suppress(FileNotFoundError):
        try:
            is_same = json.loads(path.read_bytes()) == manifest
        except ValueError:
            is_same = False
        if not is_same:
            path.unlink()


def publish_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Say that the directory holds the whole checkpoint."""
    with Part(directory / MANIFEST_NAME) as part:
        part.restart()
        part.append(json.dumps(manifest, indent=2).encode())
        part.publish()
