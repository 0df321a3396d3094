"""Tests of service/cli/interrupts.py."""

import subprocess
import sys

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


def _status(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], stderr=subprocess.DEVNULL, timeout=60, check=False).returncode


def test_a_second_interruption_does_not_change_how_the_program_ends():
    """Also when it comes after the tidying, while the interpreter goes."""
    assert _status("interrupted") == 130


def test_without_an_interruption_signals_go_where_they_went_before():
    """The first Ctrl-C after the block ends the program as it ends any other."""
    assert _status() == -2
