"""Tests of worker/progress.py."""

import threading

from worker.contract.events import EventType
from worker.progress import EventBuffer


def _filled(count: int) -> EventBuffer:
    buffer = EventBuffer()
    for step in range(count):
        buffer.emit(EventType.METRICS, {"step": step})
    return buffer


def test_sequence_numbers_count_from_one_without_gaps():
    """A reader can tell that nothing is missing."""
    events, _ = _filled(5).drain(0, 0)

    assert [event.seq for event in events] == [1, 2, 3, 4, 5]


def test_events_stay_until_acknowledged():
    """A reader that crashed before storing asks again and gets the same events."""
    buffer = _filled(3)

    assert buffer.drain(0, 0) == buffer.drain(0, 0)
    assert [event.seq for event in buffer.drain(2, 0)[0]] == [3]


def test_an_empty_poll_returns_after_its_timeout():
    """A poll never hangs."""
    assert EventBuffer().drain(0, 0.01) == ((), False)


def test_a_waiting_poll_wakes_on_an_event():
    """Events reach a waiting reader at once."""
    buffer = EventBuffer()
    timer = threading.Timer(0.05, buffer.emit, (EventType.LOG, {"message": "hello"}))
    timer.start()
    events, _ = buffer.drain(0, 10)
    timer.join()

    assert events[0].data == {"message": "hello"}


def test_the_end_is_reported_only_with_the_last_event():
    """A reader that takes small bites is not told that it is over too early."""
    buffer = _filled(3)
    buffer.emit(EventType.END, {"outcome": "succeeded"})

    assert buffer.drain(0, 0, limit=2)[1] is False
    assert buffer.drain(2, 0, limit=2)[1] is True
    assert buffer.drain(4, 0) == ((), True)


def test_nothing_follows_the_end():
    """The end event is the last one of a rank."""
    buffer = _filled(1)
    buffer.emit(EventType.END, {"outcome": "succeeded"})
    buffer.emit(EventType.LOG, {"message": "late"})

    assert [event.type for event in buffer.drain(0, 0)[0]] == [EventType.METRICS, EventType.END]


def test_who_waits_to_be_heard_waits_for_what_was_said_until_then():
    """Acknowledged, and not only handed out; what is said meanwhile does not count; nobody is waited for who never listened."""
    buffer = _filled(3)
    assert buffer.is_heard(0)
    buffer.drain(0, 0)
    assert not buffer.is_heard(0.01)
    buffer.drain(2, 0)
    assert not buffer.is_heard(0.01)
    reader = threading.Timer(0.05, buffer.drain, (3, 0))
    reader.start()
    assert buffer.is_heard(30)
    reader.join()
    buffer.emit(EventType.METRICS, {"step": 4})
    assert not buffer.is_heard(0.01)
