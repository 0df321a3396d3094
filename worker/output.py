"""What a rank prints and logs, line by line, as log events. Owns the capture and its limit; nothing is kept here."""

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections import deque
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
MAX_WAITING_BYTES = 64 * 2**20
"""How much memory may wait for a controller that is away."""
TAIL_LINES = 100
"""How many of the last lines are kept at the end of a rank, whatever was dropped before: there it says why it ends."""

_TOO_MUCH = f"more than {BYTES_PER_S} bytes/s were logged; log less"
_NOT_TAKEN = "the controller did not come for them"


class LogGate:
    """Lets through what a rank may log: a burst, then a steady rate, and no more than may wait for the controller. Where lines were
    dropped, one line says how many.

    Once it had to drop it stays shut until an eighth of the burst is free again, so that there is not one such line for every other.
    """

    def __init__(self, events: EventBuffer, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._free = float(BURST_BYTES)
        self._at = clock()
        self._lines = self._chars = 0
        self._why = ""
        self._tail: deque[tuple[str, str, str]] = deque(maxlen=TAIL_LINES)
        """The last of the dropped lines."""
        self._lock = threading.Lock()

    def emit(self, stream: str, level: str, message: str) -> bool:
        """Emit a log event, or drop it and return False."""
        size = len(message) + LINE_BYTES
        with self._lock:
            now = self._clock()
            self._free = min(BURST_BYTES, self._free + (now - self._at) * BYTES_PER_S)
            self._at = now
            if why := self._refusal(size):
                self._why = why
                self._lines += 1
                self._chars += len(message)
                self._tail.append((stream, level, message))
                return False
            self._free -= size
            self._tail.clear()
            self._say_dropped()
            self._emit(stream, level, message)
        return True

    def finish(self) -> None:
        """Say what was dropped last, but for the very last lines, which are let through."""
        with self._lock:
            self._lines -= len(self._tail)
            self._chars -= sum(len(message) for _, _, message in self._tail)
            self._say_dropped()
            while self._tail:
                self._emit(*self._tail.popleft())

    def _refusal(self, size: int) -> str:
        """Return why a line is dropped; nothing where it is not."""
        if self._free < (BURST_BYTES / 8 if self._lines else size):
            return _TOO_MUCH
        return _NOT_TAKEN if self._events.waiting_bytes > MAX_WAITING_BYTES / (2 if self._lines else 1) else ""

    def _say_dropped(self) -> None:
        if self._lines:
            message = f"{self._lines} lines ({self._chars} characters) were dropped here: {self._why}"
            self._emit("log", "warning", message, num_dropped=self._lines)
            self._lines = self._chars = 0

    def _emit(self, stream: str, level: str, message: str, **more: int) -> None:
        self._events.emit(EventType.LOG, {"stream": stream, "level": level, "message": message, **more})


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
        num_whole = len(self._partial) // MAX_LINE_CHARS * MAX_LINE_CHARS
        for start in range(0, num_whole, MAX_LINE_CHARS):
            self._emit(self._partial[start : start + MAX_LINE_CHARS])
        self._partial = self._partial[num_whole:]
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
