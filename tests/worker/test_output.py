"""Tests of worker/output.py."""

import logging
import sys

from worker.output import MAX_LINE_CHARS, captured_output
from worker.progress import EventBuffer


def _captured(action):
    events = EventBuffer()
    with captured_output(events):
        action()
    return [(event.data["stream"], event.data["level"], event.data["message"]) for event in events.drain(0, 0)[0]]


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
