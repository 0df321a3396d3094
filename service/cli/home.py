"""A controller's claim on its home: one lock, held while it lives, and a note of where it listens. Owns HOME/lock and HOME/controller.json.

The lock is the truth about who runs (the kernel lets go of it when its holder dies, however that was); the note is for finding it.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.cli.exits import UsageError
from service.settings import Home


class HomeInUseError(UsageError):
    """Another controller runs on this home."""


@contextmanager
def claimed(home: Home, *, patience_s: float = 0.5) -> Iterator[None]:
    """Hold the home alone.

    Raises:
        HomeInUseError: another process holds it, still after patience_s; named by pid and URL.
    """
    make(home)
    deadline = time.monotonic() + patience_s
    with _lock_path(home).open("a+") as stream:
        while not _try_lock(stream.fileno()):
            if time.monotonic() >= deadline:
                raise HomeInUseError(_who(home))
            time.sleep(0.05)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def make(home: Home) -> None:
    """Create the home, for its owner's eyes only.

    Raises:
        UsageError: it cannot be created or written to.
    """
    try:
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _lock_path(home).touch(mode=0o600)
    except OSError as error:
        raise UsageError(f"the home {home.path} cannot be used: {error.strerror}; choose another with --home or SYNCBN_HOME") from error


def holder(home: Home) -> int | None:
    """Return the pid of the controller that holds the home, None where nobody does."""
    try:
        with _lock_path(home).open("r+") as stream:
            if _try_lock(stream.fileno()):
                return None
            return int(stream.read() or 0) or None
    except (FileNotFoundError, ValueError):
        return None


@contextmanager
def announced(home: Home, url: str) -> Iterator[None]:
    """Say in the home where this process listens; take it back at the end."""
    note = home.controller
    temporary = note.with_name(f".{note.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    temporary.replace(note)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _lock_path(home: Home) -> Path:
    return home.path / "lock"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _who(home: Home) -> str:
    try:
        url = json.loads(home.controller.read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        url = "an address it has not written down yet"
    who = f"pid {holder(home)} at {url}"
    return f"a controller runs on the home {home.path} already: {who}; use it, stop it with `syncbn down`, or choose another --home"
