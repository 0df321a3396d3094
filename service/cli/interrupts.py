"""Ctrl-C and its kin, made safe for a program that must tidy up: at most one interruption, never inside the tidying."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """One of SIGNALS arrived."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Guard:
    """Turns the first of SIGNALS into Interrupted, and swallows the others.

    Python raises an exception of a handler wherever the program happens to be, also in the first line of a `finally`. So the handler
    raises once only, and work that is to be tidied up after has two `finally`: whichever line the exception hits, one of them is left.

        try:
            try:
                guard.arm(); work()
            finally:
                guard.disarm()
        finally:
            tidy_up()
    """

    def __init__(self) -> None:
        self._is_armed = False
        self._is_held = False
        self._arrived: int | None = None

    @property
    def has_arrived(self) -> bool:
        """Whether there has been a signal."""
        return self._arrived is not None

    def arm(self) -> None:
        """From here on the first signal raises."""
        self._is_armed = True
        self.check()

    def disarm(self) -> None:
        """From here on no signal raises."""
        self._is_armed = False

    def check(self) -> None:
        """Raise if a signal arrived and its exception got lost in code that swallows exceptions."""
        if self._arrived is not None:
            self._is_armed = False
            raise Interrupted(self._arrived)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put an interruption off to the end of a block that must not be left half done."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        self.check()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Take a signal; for `signal.signal`."""
        self._arrived = self._arrived or number
        if self._is_armed and not self._is_held:
            self._is_armed = False
            raise Interrupted(number)


@contextmanager
def guarded() -> Iterator[Guard]:
    """Route SIGNALS to a guard, not armed yet, and back to where they went before.

    Once one has arrived they stay ignored: the program is on its way out, and a second Ctrl-C must not cost it its exit status.
    """
    guard = Guard()
    before = {number: signal.signal(number, guard.handle) for number in SIGNALS}
    try:
        yield guard
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if guard.has_arrived else handler)
