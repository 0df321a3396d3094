"""What a rank prints and logs, line by line, as log events. Owns the capture and its limit; nothing is kept here."""

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TextIO

from worker.contract.events import EventType
from worker.progress import EventBuffer

MAX_LINE_CHARS = 8192
"""A longer line is cut into pieces of this length, so that one print cannot make an event of a gigabyte."""

BURST_BYTES = 8 * 2**20
"""What a rank may log at once."""
BYTES_PER_S = 256 * 2**10
"""What a rank may log for ever. More is dropped, and a line says so."""
LINE_BYTES = 200
"""What a line costs beside its text."""


class LogGate:
    """Lets through what a rank may log: a burst, then a steady rate. Where lines were dropped, one line says how many.

    Once it had to drop it stays shut until an eighth of the burst is free again, so that there is not one such line for every other.
    """

    def __init__(self, events: EventBuffer, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._free = float(BURST_BYTES)
        self._at = clock()
        self._lines = self._bytes = 0
        self._lock = threading.Lock()

    def emit(self, stream: str, level: str, message: str) -> bool:
        """Emit a log event, or drop it and return False."""
        size = len(message) + LINE_BYTES
        with self._lock:
            now = self._clock()
            self._free = min(BURST_BYTES, self._free + (now - self._at) * BYTES_PER_S)
            self._at = now
            if self._free < (BURST_BYTES / 8 if self._lines else size):
                self._lines += 1
                self._bytes += len(message)
                return False
            self._free -= size
            self._say_dropped()
            self._emit(stream, level, message)
        return True

    def finish(self) -> None:
        """Say what was dropped last."""
        with self._lock:
            self._say_dropped()

    def _say_dropped(self) -> None:
        if self._lines:
            self._emit(
                "log", "warning",
                f"{self._lines} lines ({self._bytes} characters) were dropped here: more than {BYTES_PER_S} bytes/s were logged; log less",
            )  # fmt: skip
            self._lines = self._bytes = 0

    def _emit(self, stream: str, level: str, message: str) -> None:
        self._events.emit(EventType.LOG, {"stream": stream, "level": level, "message": message})


class _Lines:
    """A text stream that emits each finished line, and passes on to the original stream what is not dropped."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, gate: LogGate, stream: str, original: TextIO) -> None:
        self._gate = gate
        self._stream = stream
        self._original = original
        self._partial = ""

    def write(self, text: str) -> int:
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
            piece = visible[start : start + MAX_LINE_CHARS]
            if self._gate.emit(self._stream, "info", piece):
                self._original.write(piece + "\n")


class _LogEvents(logging.Handler):
    """Turns log records into log events, tracebacks included."""

    def __init__(self, gate: LogGate) -> None:
        super().__init__(logging.INFO)
        self._gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            message += "\n" + "".join(traceback.format_exception(*record.exc_info))
        for line in message.splitlines() or [""]:
            self._gate.emit("log", record.levelname.lower(), f"{record.name}: {line}"[:MAX_LINE_CHARS])


@contextlib.contextmanager
def captured_output(events: EventBuffer) -> Iterator[None]:
    """Emit stdout, stderr and logging as log events inside the block, whole process."""
    gate = LogGate(events)
    out, err = _Lines(gate, "stdout", sys.stdout), _Lines(gate, "stderr", sys.stderr)
    handler = _LogEvents(gate)
    logging.getLogger().addHandler(handler)
    logging.getLogger("worker").setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        out.finish()
        err.finish()
        gate.finish()
