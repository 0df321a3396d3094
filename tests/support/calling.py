"""Calls to a process over a pipe, many at a time, each answered when it is done: the end that calls and the end that answers."""

import contextlib
import threading
from multiprocessing.connection import Connection
from typing import Any

ANSWER_TIMEOUT_S = 60.0


class GoneError(RuntimeError):
    """The process ended before it answered."""


class FailedError(RuntimeError):
    """What the process raised, in words."""


class Caller:
    """The end that calls. Any thread may; each waits for its own answer."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._answers: dict[int, Any] = {}
        self._next = 0
        self._changed = threading.Condition()
        self._is_gone = False
        threading.Thread(target=self._receive, daemon=True).start()

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what a method of the process's object returns. Raises GoneError or FailedError."""
        with self._changed:
            number = self._next = self._next + 1
            try:
                self._pipe.send((number, method, arguments))
            except OSError as error:
                raise GoneError(method) from error
            assert self._changed.wait_for(lambda: number in self._answers or self._is_gone, ANSWER_TIMEOUT_S), f"{method} hangs"
            if number not in self._answers:
                raise GoneError(method)
            is_fine, answer = self._answers.pop(number)
        if not is_fine:
            raise FailedError(answer)
        return answer

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, *answer = self._pipe.recv()
                with self._changed:
                    self._answers[number] = answer
                    self._changed.notify_all()
        with self._changed:
            self._is_gone = True
            self._changed.notify_all()


def answer_calls(pipe: Connection, target: Any) -> None:
    """Be the end that answers, by the methods of an object, each call in a thread of its own; return when nobody can call any more."""
    sending = threading.Lock()

    def answer(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            found = True, getattr(target, method)(*arguments)
        except Exception as error:  # noqa: BLE001  the caller looks at it
            found = False, repr(error)
        with sending, contextlib.suppress(OSError):
            pipe.send((number, *found))

    with contextlib.suppress(EOFError, OSError):
        while True:
            threading.Thread(target=answer, args=pipe.recv(), daemon=True).start()
