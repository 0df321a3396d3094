"""Named processes that outlive whoever asks for them, and names of rooms: what Ray is to the controller, in one process, over a socket.

Owns the processes of the ranks and the rules that hold for them at all times: never two living processes for one rank of one attempt,
never living processes of two attempts of one job. Whoever breaks one is on record in `violations`.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Self

from tests.support import scripted_rank
from tests.support.calling import Caller, FailedError, GoneError
from tests.support.forking import fork

KEY = b"tests"


class ActorError(RuntimeError):
    """What the caller did not expect, by name: `died`, `unknown`, or what the process said."""


class Actor:
    """One named process. Calls may come from any thread."""

    def __init__(self, name: str, rank: int) -> None:
        self.name = name
        pipe, child = multiprocessing.Pipe()
        self.process = fork(scripted_rank.serve, rank, child)
        child.close()
        self._calls = Caller(pipe)

    @property
    def is_alive(self) -> bool:
        """Whether its process is."""
        return bool(self.process.is_alive())

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Return what a method of the rank returns."""
        try:
            return self._calls.call(method, *arguments)
        except GoneError as error:
            raise ActorError("died") from error
        except FailedError as error:
            raise ActorError(*error.args) from error

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(10)


class ActorHost:
    """The actors and rooms, and the socket at which they are asked for. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "actors.sock")
        self.violations: list[str] = []
        self._actors: dict[str, Actor] = {}
        self._rooms: set[str] = set()
        self._lock = threading.Lock()
        self._listener = Listener(self.address, authkey=KEY)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for actor in list(self._actors.values()):
            actor.kill()

    def left(self, job_id: str) -> list[str]:
        """Return the living processes and the rooms of a job, by name."""
        with self._lock:
            return [name for name in (*self._living(), *self._rooms) if name.startswith(job_id)]

    def _living(self) -> list[str]:
        return [name for name, actor in self._actors.items() if actor.is_alive]

    def create(self, name: str, rank: int) -> str:
        """Start a process of that name, if none is alive."""
        with self._lock:
            if name in self._living():
                return name
            job_id, attempt, *_ = name.split("/")
            for other in self._living():
                its_job, its_attempt, its_rank, _ = other.split("/")
                if its_job == job_id and (its_attempt != attempt or its_rank == str(rank)):
                    self.violations.append(f"{name} was made while {other} lived")
            self._actors[name] = Actor(name, rank)
        return name

    def named(self) -> list[str]:
        """Return the names of the living."""
        with self._lock:
            return self._living()

    def call(self, name: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of a rank."""
        return self._actors[name].call(method, arguments)

    def pid(self, name: str) -> int | None:
        """Return the process of that name, if it is alive."""
        actor = self._actors[name]
        return actor.process.pid if actor.is_alive else None

    def kill(self, name: str) -> None:
        """End a process."""
        self._actors[name].kill()

    def reserve(self, name: str) -> None:
        """Keep a room."""
        self._rooms.add(name)

    def rooms(self) -> list[str]:
        """Return the rooms that are kept."""
        return sorted(self._rooms)

    def release(self, name: str) -> None:
        """Give a room back."""
        self._rooms.discard(name)

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (OSError, EOFError, multiprocessing.AuthenticationError):
                if self._listener._listener is None:
                    return
                continue  # whoever asked was killed in the middle of it
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with connection, contextlib.suppress(EOFError, OSError):
            method, arguments = connection.recv()
            try:
                answer = True, getattr(self, method)(*arguments)
            except ActorError as error:
                answer = False, str(error)
            connection.send(answer)
