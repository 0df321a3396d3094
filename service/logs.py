"""Log lines: the `log` events of the ranks, flattened for reading."""

from typing import Any

from service.store.records import Event


def log_line(event: Event) -> dict[str, Any]:
    """Return one log event as the API says it."""
    data = event.data
    return {
        "seq": event.seq,
        "at": event.at,
        "rank": event.rank,
        "attempt": event.attempt,
        "stream": data.get("stream", "log"),
        "level": data.get("level"),
        "message": event.message,
    }
