"""Tests of service/cli/log.py: one record in, one line out."""

import io
import logging
import sys

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cli.log import escaped, log_to_stderr

FORGED = "x\n2026-01-01 [error] all jobs deleted\x1b[2J\r\u2028\u202e"


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_stays_on_its_line(text):
    """Whatever a job, a header or an error holds."""
    shown = escaped(text)

    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    shown.encode()


@pytest.fixture(params=["console", "json"])
def log(request, monkeypatch):
    """What the controller's log wrote, and loggers to write with."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = []
    log_to_stderr(request.param)
    yield stream
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def test_a_record_cannot_forge_another_one(log):
    """By either way to log."""
    structlog.get_logger().warning("cluster_not_reached", error=FORGED, job=FORGED)
    logging.getLogger("x").warning("said %s", FORGED)

    assert len(log.getvalue().splitlines()) == 2
    assert "\x1b" not in log.getvalue().replace("\x1b[0m", "")
    assert log.getvalue().count("all jobs deleted") == 3


def test_a_traceback_cannot_either(log):
    """Its lines are indented, as no record is; what an exception says is escaped."""
    try:
        raise ValueError(FORGED)
    except ValueError:
        structlog.get_logger().exception("round_failed")
        logging.getLogger("x").exception("failed")

    lines = log.getvalue().splitlines()
    assert len([line for line in lines if not line.startswith("  ")]) == 2
    assert any("ValueError" in line for line in lines)
    assert "\x1b" not in log.getvalue()


def test_the_tests_above_can_fail():
    """Python's own formatter forges."""
    record = logging.LogRecord("x", logging.ERROR, "", 0, FORGED, (), None)

    assert len(logging.Formatter().format(record).splitlines()) > 1
