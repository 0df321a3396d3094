"""The conditions of a download: byte ranges and entity tags (RFC 9110, sections 13 and 14). Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.errors import ChangedError, RangeError

# Longer numbers than these lie past the end of any file, and need not be counted out.
_RANGE: Final = re.compile(r"bytes\s*=\s*(?:([0-9]{1,1000})\s*-\s*([0-9]{0,1000})|-\s*([0-9]{1,1000}))\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Slice:
    """What to send: the bytes from `start` up to, not including, `end`; `status` 200, 206 or 304."""

    status: int
    start: int
    end: int


def slice_of(headers: Mapping[str, str], etag: str, size: int) -> Slice:
    """Decide what a request gets of a file.

    Args:
        headers: of the request, by lower-case name.
        etag: strong, with its quotes.
        size: bytes of the file.
    Raises:
        ChangedError: If-Match names another file.
        RangeError: not one byte is in the range.
    """
    if "if-match" in headers and not _is_listed(headers["if-match"], etag, is_weak=False):
        raise ChangedError(f"the file has ETag {etag}; expected one of {headers['if-match'][:200]}; fetch it anew")
    if "if-none-match" in headers and _is_listed(headers["if-none-match"], etag, is_weak=True):
        return Slice(304, 0, 0)
    whole = Slice(200, 0, size)
    if "range" not in headers or headers.get("if-range", etag).strip() != etag:
        return whole
    return _ranged(headers["range"], size) or whole


def _ranged(header: str, size: int) -> Slice | None:
    """Return the one range; None where the header is to be ignored: no range of bytes, or several."""
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(size - int(suffix), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise RangeError(header, size)
    return Slice(206, start, end)


def _is_listed(header: str, etag: str, *, is_weak: bool) -> bool:
    tags = {tag.strip() for tag in header.split(",")}
    if is_weak:
        tags = {tag.removeprefix("W/") for tag in tags}
    return "*" in tags or etag in tags
