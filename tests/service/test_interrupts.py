"""Tests of service/cli/interrupts.py."""

import signal
import subprocess
import sys

import pytest

from service.cli.interrupts import SIGNALS, Guard, Interrupted, guarded

_PROGRAM = """
import os, signal, sys
from service.cli.interrupts import Interrupted, guarded
code = 0
with guarded() as guard:
    try:
        guard.arm()
        if "interrupted" in sys.argv:
            os.kill(os.getpid(), signal.SIGINT)
    except Interrupted:
        code = 130
os.kill(os.getpid(), signal.SIGINT)
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def handlers():
    """What the tests' own process does with signals is as it was."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_interrupts_and_no_other_does():
    """Ctrl-C again while it tidies up does not break the tidying."""
    steps = []
    with guarded() as guard:
        try:
            try:
                guard.arm()
                signal.raise_signal(signal.SIGINT)
                steps.append("not reached")
            finally:
                guard.disarm()
        except Interrupted as error:
            steps.append(str(error))
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            steps.append("tidied up")
    assert steps == ["SIGINT", "tidied up"]


def test_a_signal_before_the_work_prevents_it():
    """Ctrl-C between the first instruction and the first step is not lost."""
    with guarded() as guard:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            guard.arm()


def test_an_interruption_waits_for_the_end_of_a_held_block():
    """A process that is just being started is not lost."""
    with guarded() as guard:
        guard.arm()
        steps = []

        def start():
            with guard.held():
                signal.raise_signal(signal.SIGINT)
                steps.append("started")
            steps.append("not reached")

        with pytest.raises(Interrupted):
            start()
        assert steps == ["started"]


def test_an_interruption_that_got_lost_is_found_again():
    """Some code swallows exceptions; the next check raises it anew."""
    guard = Guard()
    guard.arm()
    with pytest.raises(Interrupted):
        guard.handle(signal.SIGINT, None)
    with pytest.raises(Interrupted):
        guard.check()


def _status(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], stderr=subprocess.DEVNULL, timeout=60, check=False).returncode


def test_a_second_interruption_does_not_change_how_the_program_ends():
    """Also when it comes after the tidying, while the interpreter goes."""
    assert _status("interrupted") == 130


def test_without_an_interruption_signals_go_where_they_went_before():
    """The first Ctrl-C after the block ends the program as it ends any other."""
    assert _status() == -2
