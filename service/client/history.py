"""What a job measured, step by step, from its events. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    step: int
    value: float
    at_s: float
    """When it was measured, in seconds since 1970."""


def points(events: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Return the values of all metrics in the order of steps. Of a step that was done again after a restart, the last.

    Args:
        events: of type `metrics`, oldest first.
    """
    found: dict[tuple[str, int], Point] = {}
    for event in events:
        at_s, step = datetime.fromisoformat(event["at"]).timestamp(), event["data"]["step"]
        found |= {(name, step): Point(name, step, float(value), at_s) for name, value in event["data"]["values"].items()}
    return sorted(found.values(), key=lambda point: point.step)


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a document as dotted names and texts.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': '1', 'c': '[2]'}
    """
    found: dict[str, str] = {}
    for name, value in document.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": str(value)}
    return found
