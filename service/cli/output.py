"""What goes to stdout and what to stderr: answers there, everything that is said about them here. Owns no command."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

# An escape sequence of a log line or a name must not drive the reader's terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: object) -> str:
    r"""Return text with every control character but tab and line feed made visible.

    >>> clean("\x1b[31mred")
    '\\x1b[31mred'
    """
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text))


def console(*, stderr: bool = False) -> Console:
    """Return a console that is plain in a pipe and under NO_COLOR, and that cuts no column off where nobody can widen the window."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False, width=None if stream.isatty() else 200)


def say(message: object) -> None:
    """Tell the user something that is not the answer."""
    console(stderr=True).print(Text(clean(message)), soft_wrap=True)


def complain(message: object) -> None:
    """Tell the user what went wrong."""
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), clean(message)), soft_wrap=True)


def problems(rows: Iterable[Mapping[str, Any]]) -> None:
    """List what is wrong with a document: where, what was found, what was expected, what to do."""
    for row in rows:
        value = row.get("value")
        found = "" if value is None else f" is {json.dumps(value, ensure_ascii=False)}"
        say(
            f"  {row.get('loc') or 'the spec'}{found}: expected {row.get('expected', 'something else')}; {row.get('remedy', '')}".rstrip(
                "; "
            )
        )


def print_json(value: Any, *, is_line: bool = False) -> None:
    """Print one JSON document to stdout, in ASCII; on one line where it is part of a stream."""
    sys.stdout.write(json.dumps(value, indent=None if is_line else 2) + "\n")
    sys.stdout.flush()


def answer(value: Any, *, as_json: bool, show: Callable[[], None]) -> None:
    """Print an answer, as JSON or as `show` does it."""
    if as_json:
        print_json(value)
    else:
        show()
