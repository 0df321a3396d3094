"""When a request is tried again, and after how long: pure decisions, the same for both clients.

Tried again: connections that fail and answers 429, 502, 503, 504, for requests that may be repeated. GET and HEAD always may; POST only
where the caller says so, because the service recognizes the repetition (an Idempotency-Key, or an action that is the same done twice).
"""

import math
import random
import time
from dataclasses import dataclass
from typing import Final

PASSING: Final = frozenset({429, 502, 503, 504})
"""Statuses that a later try may not meet again."""
SILENCE_S: Final = 60.0
"""A stream that says nothing for so long, not even a heartbeat, is dead."""


@dataclass(frozen=True)
class Patience:
    """How often and how long to try again. The wait doubles from `first_wait_s`, spread by chance so that clients do not march in step."""

    tries: int = 5
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0

    def tries_of(self, method: str, *, is_repeatable: bool | None) -> int:
        """Return how often a request may be sent; is_repeatable None: as its method says."""
        return self.tries if (method in {"GET", "HEAD"} if is_repeatable is None else is_repeatable) else 1

    def wait_s(self, failures: int, retry_after: str | None = None) -> float:
        """Return how long to wait after so many failures in a row; a Retry-After in seconds is obeyed up to the longest wait."""
        doubled = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return max(doubled * random.uniform(0.75, 1.0), min(self.longest_wait_s, _seconds(retry_after)))  # noqa: S311 - no secret


class Deadline:
    """A bound on a wait, on the monotonic clock; None: no bound."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def passes_within(self, seconds: float) -> bool:
        """Return whether it is over in so many seconds."""
        return self._end is not None and time.monotonic() + seconds > self._end


def _seconds(retry_after: str | None) -> float:
    try:
        seconds = float(retry_after or 0)
    except ValueError:  # the other form, an HTTP date, is not worth a clock comparison
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
