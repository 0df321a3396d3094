"""What a follower of a live stream has seen, and when it gives up. Pure but for the clock; opens nothing."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from service.client.errors import ClientError, Unreachable
from service.client.sse import Message

OUTAGE_S = 60.0
"""How long the service may be away, in one piece, before a follower gives up."""


class Following:
    """One stream over all its connections.

    Args:
        after: the id of the last event already seen.
    """

    def __init__(self, path: str, after: str | None, outage_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._last_id = after
        self._outage_s = outage_s
        self._clock = clock
        self._silent_since = clock()
        self.failures = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the request that goes on after the last event seen."""
        resume = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
        return {"Accept": "text/event-stream", "Cache-Control": "no-store", **resume}

    def see(self, message: Message) -> dict[str, Any]:
        """Take note of an event and return it decoded.

        Raises:
            ClientError: it is not JSON.
        """
        self.failures, self._silent_since, self._last_id = 0, self._clock(), message.id or self._last_id
        try:
            event = json.loads(message.data)
        except json.JSONDecodeError as error:
            raise ClientError(
                f"the service sent an event that is not JSON: {message.data[:80]!r}; are client and service of one version?"
            ) from error
        return event if isinstance(event, dict) else {"type": message.event, "data": event}

    def lose(self, cause: str) -> None:
        """Count a lost connection.

        Raises:
            Unreachable: nothing was seen for too long.
        """
        self.failures += 1
        if self._clock() - self._silent_since > self._outage_s:
            raise Unreachable(self._path, f"the stream was lost for {self._outage_s:g} s: {cause}")
