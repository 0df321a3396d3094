"""Ends a process in which Python does not run any more, because something keeps the interpreter's lock and never lets go of it.

For a rank that is alone: nobody waits for it, so nobody else can tell that it hangs, and it cannot say so itself. Owns the time it takes.
"""

import contextlib
import faulthandler
import threading
from collections.abc import Iterator

HELD_S = 180.0
"""How long no thread may come to run. Also a process that is stopped for longer ends once it is continued."""
BEAT_S = 10.0
"""How often a thread tries to run."""
_STANDARD_ERROR = 2


@contextlib.contextmanager
def interpreter_watched(held_s: float = HELD_S, beat_s: float = BEAT_S) -> Iterator[None]:
    """Inside the block, end this process, with the stacks of all threads on its standard error, when none can run for `held_s`.

    It is the standard library's watchdog, which needs no lock of Python's, wound up again and again by a thread that does.
    """
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.is_set():
            faulthandler.dump_traceback_later(held_s, exit=True, file=_STANDARD_ERROR)
            is_over.wait(beat_s)

    thread = threading.Thread(target=beat, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
