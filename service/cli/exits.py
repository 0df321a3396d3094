"""Exit codes, and the one place where an error becomes a sentence and a code instead of a traceback."""

import errno
import os
import sys
from typing import Any, Final

import typer
from typer.core import TyperGroup

from service.cli.output import complain, problems
from service.client import AddressError, ClientError, ServiceError, Unreachable

OK: Final = 0
JOB_FAILED: Final = 1
"""The job failed or was cancelled, or what was asked for did not come out right."""
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130


class UsageError(Exception):
    """The user's to mend: a file, an option or an id. The message says how."""


class CommandError(Exception):
    """What was asked for did not come out right; nothing in the asking was wrong."""


class Shell(TyperGroup):
    """The group of commands at whose edge every expected error ends."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; end with a message on stderr and the right code where it raises."""
        try:
            return super().invoke(ctx)
        except (ClientError, UsageError, CommandError, OSError, KeyboardInterrupt) as error:
            raise typer.Exit(code_of(error)) from error


def code_of(error: BaseException) -> int:
    """Say what went wrong on stderr and return the exit code for it."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # The reader of our output went away. What is buffered has nowhere to go, and flushing it at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return JOB_FAILED
    if isinstance(error, ServiceError):
        complain(f"{error.detail} ({error.code})")
        if len(error.errors) != 1 or str(error.errors[0].get("remedy")) not in error.detail:  # else all of it is said
            problems(error.errors)
        return UNREACHABLE if error.status >= 500 or error.status == 429 else USAGE
    complain(str(error))
    if isinstance(error, Unreachable):
        return UNREACHABLE
    return USAGE if isinstance(error, UsageError | AddressError | OSError) else JOB_FAILED
