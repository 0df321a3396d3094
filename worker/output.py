"""What a rank prints and logs, line by line, as log events. Owns the capture; nothing is kept here."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import TextIO

from worker.contract.events import EventType
from worker.progress import EventBuffer

MAX_LINE_CHARS = 8192
"""A longer line is cut into pieces of this length, so that one print cannot make an event of a gigabyte."""


class _Lines:
    """A text stream that emits each finished line and passes everything on to the original stream."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, events: EventBuffer, stream: str, original: TextIO) -> None:
        self._events = events
        self._stream = stream
        self._original = original
        self._partial = ""

    def write(self, text: str) -> int:
        self._original.write(text)
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._emit(line)
        while len(self._partial) >= MAX_LINE_CHARS:
            self._emit(self._partial[:MAX_LINE_CHARS])
            self._partial = self._partial[MAX_LINE_CHARS:]
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._original.fileno()

    def finish(self) -> None:
        """Emit what was written after the last line end."""
        if self._partial:
            self._emit(self._partial)
            self._partial = ""

    def _emit(self, line: str) -> None:
        # A progress bar rewrites its line with carriage returns; only what stays visible is worth a log line.
        visible = line.rstrip("\r").rsplit("\r", 1)[-1]
        for start in range(0, max(len(visible), 1), MAX_LINE_CHARS):
            data = {"stream": self._stream, "level": "info", "message": visible[start : start + MAX_LINE_CHARS]}
            self._events.emit(EventType.LOG, data)


class _LogEvents(logging.Handler):
    """Turns log records into log events, tracebacks included."""

    def __init__(self, events: EventBuffer) -> None:
        super().__init__(logging.INFO)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            message += "\n" + "".join(traceback.format_exception(*record.exc_info))
        for line in message.splitlines() or [""]:
            data = {"stream": "log", "level": record.levelname.lower(), "message": f"{record.name}: {line}"[:MAX_LINE_CHARS]}
            self._events.emit(EventType.LOG, data)


@contextlib.contextmanager
def captured_output(events: EventBuffer) -> Iterator[None]:
    """Emit stdout, stderr and logging as log events inside the block, whole process."""
    out, err = _Lines(events, "stdout", sys.stdout), _Lines(events, "stderr", sys.stderr)
    handler = _LogEvents(events)
    logging.getLogger().addHandler(handler)
    logging.getLogger("worker").setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        out.finish()
        err.finish()
