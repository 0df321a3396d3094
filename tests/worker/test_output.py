"""Tests of worker/output.py."""

import logging
import sys
import time

from worker import output
from worker.contract import EventType
from worker.output import MAX_LINE_CHARS, LogGate, captured_output
from worker.progress import EVENT_BYTES, EventBuffer


def _captured(action, limit=1000):
    events = EventBuffer()
    with captured_output(events):
        action()
    return [(event.data["stream"], event.data["level"], event.data["message"]) for event in events.drain(0, 0, limit)[0]]


def test_print_becomes_one_event_for_each_line():
    """A user finds in the logs what the model printed, also without a last line end."""

    def action():
        print("one\ntwo")
        print("three", end="")

    assert _captured(action) == [("stdout", "info", "one"), ("stdout", "info", "two"), ("stdout", "info", "three")]


def test_standard_error_is_told_apart():
    """Warnings printed to stderr keep their stream."""
    assert _captured(lambda: print("careful", file=sys.stderr)) == [("stderr", "info", "careful")]


def test_logging_keeps_its_level_and_traceback():
    """An exception that was logged can be read line by line."""

    def action():
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("model").exception("it failed")

    lines = _captured(action)
    assert lines[0] == ("log", "error", "model: it failed")
    assert lines[-1] == ("log", "error", "model: ValueError: broken")


def test_a_progress_bar_is_one_line():
    """Carriage returns rewrite a line; only what stays visible is kept."""
    assert _captured(lambda: print("10%\r50%\r100%")) == [("stdout", "info", "100%")]


def test_an_endless_line_is_cut():
    """One print cannot make an event of a gigabyte."""
    messages = [message for _, _, message in _captured(lambda: print("x" * (2 * MAX_LINE_CHARS + 5)))]

    assert [len(message) for message in messages] == [MAX_LINE_CHARS, MAX_LINE_CHARS, 5]


def test_a_rank_that_logs_too_much_is_cut_and_says_so():
    """A gigabyte a minute harms nobody: a burst is kept, then a rate; where lines are missing one says how many."""
    now = [0.0]
    events = EventBuffer()
    gate = LogGate(events, lambda: now[0])
    line = "x" * 8000
    let_through = sum(gate.emit("stdout", "info", line) for _ in range(10_000))
    assert let_through == output.BURST_BYTES // (len(line) + output.LINE_BYTES)
    now[0] += 1.0
    assert not gate.emit("stdout", "info", "too early: it stays shut until an eighth is free")
    now[0] += output.BURST_BYTES / output.BYTES_PER_S
    assert gate.emit("stdout", "info", "on again")
    *_, marker, last = (event.data for event in events.drain(0, 0, limit=10**6)[0])
    dropped = 10_000 - let_through + 1
    assert (marker["level"], last["message"]) == ("warning", "on again")
    assert f"{dropped} lines" in marker["message"]
    assert marker["num_dropped"] == dropped


def test_the_last_lines_are_kept_whatever_was_dropped_before():
    """There a job says why it ends. What is counted as dropped does not count them."""
    events = EventBuffer()
    gate = LogGate(events, lambda: 0.0)
    let_through = sum(gate.emit("stdout", "info", f"{number:06d}" + "x" * 8000) for number in range(5000))
    gate.finish()
    *_, marker = events.drain(0, 0, limit=let_through + 1)[0]
    assert marker.data["num_dropped"] == 5000 - let_through - output.TAIL_LINES
    last = [int(event.data["message"][:6]) for event in events.drain(marker.seq, 0)[0]]
    assert last == list(range(5000 - output.TAIL_LINES, 5000))


def test_a_gigantic_print_without_a_line_end_is_no_hang():
    """It is cut in one go: each piece costs its own length, not that of the rest, which would take minutes."""
    began = time.monotonic()
    messages = [message for stream, _, message in _captured(lambda: print("x" * 100_000_000, end="")) if stream == "stdout"]
    assert {len(message) for message in messages} == {MAX_LINE_CHARS}
    assert time.monotonic() - began < 20


def test_what_waits_for_a_controller_that_is_away_is_bounded(monkeypatch):
    """Lines are dropped, other events are not; when it has come the log goes on, and says what is missing."""
    monkeypatch.setattr(output, "MAX_WAITING_BYTES", 100 * (EVENT_BYTES + 4))
    events = EventBuffer()
    gate = LogGate(events)
    assert [gate.emit("stdout", "info", "line") for _ in range(150)].count(True) == 101
    events.emit(EventType.METRICS, {})
    assert not gate.emit("stdout", "info", "more")
    events.drain(102, 0)
    assert gate.emit("stdout", "info", "on again")
    marker, last = (event.data for event in events.drain(102, 0)[0])
    assert marker["message"] == "50 lines (200 characters) were dropped here: the controller did not come for them"
    assert last["message"] == "on again"
