"""Ids: what it is the id of, and a ULID, so that ids sort by age."""

import os
import threading
import time
from typing import Final

JOB_ID_PATTERN: Final = r"^job_[0-9A-HJKMNP-TV-Z]{26}$"
COMPARISON_ID_PATTERN: Final = r"^cmp_[0-9A-HJKMNP-TV-Z]{26}$"
CODE_ID_PATTERN: Final = r"^code_[0-9A-HJKMNP-TV-Z]{26}$"
TOKEN_ID_PATTERN: Final = r"^tok_[0-9A-HJKMNP-TV-Z]{26}$"  # noqa: S105 - a pattern
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS: Final = 80

_lock = threading.Lock()
_last = 0


def new_job_id() -> str:
    """Return the id of a new job.

    >>> first, second = new_job_id(), new_job_id()
    >>> first < second, len(first)
    (True, 30)
    """
    return new_id("job")


def new_id(kind: str) -> str:
    """Return an id greater than every one this process has made before, also within one millisecond or after the clock went back.

    Args:
        kind: its beginning: `job`, `cmp` (a comparison), `tok` (a token) or `code` (a bundle).
    """
    global _last  # noqa: PLW0603 - the one counter of the process
    with _lock:
        fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | int.from_bytes(os.urandom(_RANDOM_BITS // 8))
        # Grow by a random amount rather than by one, so that an id does not tell the next.
        _last = max(fresh, _last + 1 + int.from_bytes(os.urandom(4)))
        number = _last
    return f"{kind}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def number_of(id_: str) -> int:
    """Return the number of 128 bits that an id is made of.

    >>> number_of("job_0000000000000000000000000Z")
    31
    """
    number = 0
    for letter in id_.partition("_")[2]:
        number = number << 5 | _ALPHABET.index(letter)
    return number
