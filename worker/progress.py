"""The event buffer of one rank: numbers events, keeps them until they are acknowledged, and answers long polls.

Owns the sequence numbers. Knows neither Ray nor torch. Any thread may emit; any thread may drain.
"""

import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any

from worker.contract.events import EventType, RankEvent

EVENT_BYTES = 1024
"""What an event takes beside the text of a log line."""


class EventBuffer:
    """Events of one rank, from the oldest unacknowledged to the newest.

    A controller that is away loses nothing: an event leaves the buffer only when a drain names a sequence number at or past it.
    The END event is the last one; what is emitted after it is dropped, because nobody would ever read it.
    """

    def __init__(self) -> None:
        self._events: deque[RankEvent] = deque()
        self._last_seq = 0
        self._is_ended = False
        self.standing: dict[str, Any] = {}
        """The data of the last `state` event."""
        self._waiting_chars = 0
        self._is_read = False
        self._changed = threading.Condition()

    @property
    def waiting_bytes(self) -> int:
        """About how much memory the events take that are not acknowledged yet."""
        return self._waiting_chars + EVENT_BYTES * len(self._events)

    def begin_after(self, seq: int) -> None:
        """Number the first event `seq` + 1: this process goes on where a dead one of the same rank ended. Nothing was emitted yet."""
        with self._changed:
            self._last_seq = max(self._last_seq, seq)

    def emit(self, type_: EventType, data: dict[str, Any]) -> None:
        """Append one event. `data` must be JSON: str, int, finite float, bool, None, list, dict."""
        with self._changed:
            if self._is_ended:
                return
            self._last_seq += 1
            self._events.append(RankEvent(seq=self._last_seq, at=datetime.now(UTC), type=type_, data=data))
            self._waiting_chars += len(data["message"]) if type_ is EventType.LOG else 0
            self._is_ended = type_ is EventType.END
            if type_ is EventType.STATE:
                self.standing = data
            self._changed.notify_all()

    def is_heard(self, timeout_s: float) -> bool:
        """Return whether all that was emitted so far is acknowledged, after waiting for that; at once where nobody has ever drained."""
        with self._changed:
            last = self._last_seq
            return self._changed.wait_for(lambda: not self._is_read or not self._events or self._events[0].seq > last, timeout_s)

    def drain(self, after_seq: int, timeout_s: float, limit: int = 1000) -> tuple[tuple[RankEvent, ...], bool]:
        """Acknowledge everything up to `after_seq` and wait for something newer.

        Args:
            after_seq: the last sequence number that the reader has stored; 0 for none.
            timeout_s: longest wait for a newer event.
            limit: most events returned at once.
        Returns:
            Newer events, oldest first, empty after the timeout; and whether END has been handed out, with this answer or before.
        """
        with self._changed:
            self._is_read = True
            while self._events and self._events[0].seq <= after_seq:
                gone = self._events.popleft()
                self._waiting_chars -= len(gone.data["message"]) if gone.type is EventType.LOG else 0
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._events) or self._is_ended, timeout_s)
            batch = tuple(self._events)[:limit]
            return batch, self._is_ended and len(batch) == len(self._events)
