"""How often a token may ask. In memory: a restart forgives."""

import time
from collections.abc import Callable
from typing import Final

from service.errors import TooManyRequestsError

BURST_S: Final = 5.0
"""A token that was quiet may ask as much at once as in so many seconds at its rate."""


class RequestRates:
    """The generic cell rate algorithm (ITU-T I.371), one cell for each token: the time at which all that it asked for is paid off."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / per_s
        self._per_s = per_s
        self._clock = clock
        self._paid_at: dict[str, float] = {}

    def take(self, token_id: str) -> None:
        """Count one request.

        Raises:
            TooManyRequestsError: the token's share is used up; says when to come back.
        """
        now = self._clock()
        paid_at = max(now, self._paid_at.get(token_id, now)) + self._interval_s
        wait_s = paid_at - now - BURST_S
        # With less than one request in BURST_S, one request is still one request.
        if wait_s > 0 and paid_at - now > self._interval_s:
            raise TooManyRequestsError(
                f"token {token_id} asks more than {self._per_s:g} times a second; expected that or less; try again in {wait_s:.1f} s",
                headers={"Retry-After": str(int(wait_s) + 1)},
            )
        self._paid_at[token_id] = paid_at
