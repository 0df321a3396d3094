"""The operator's policy file: read again whenever it has changed, so that limits change without a restart."""

import tomllib
from pathlib import Path

import structlog
from pydantic import ValidationError

from service.quotas import Policy

log = structlog.get_logger()


class PolicyError(ValueError):
    """The policy file cannot be used. The operator's to mend."""


class PolicyFile:
    """A TOML file that may be absent: then there are no limits.

    Raises:
        PolicyError: the file is there and wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self._policy = self._read()

    def current(self) -> Policy:
        """Return what the file says now. Where it has become wrong, what it said before, and the log says why."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._policy = self._read()
                log.info("policy_read", path=str(self._path))
            except PolicyError as error:
                log.warning("policy_refused", error=str(error))
        return self._policy

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> Policy:
        try:
            return Policy.model_validate(tomllib.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Policy()
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, row['loc']))} is {row['input']!r}: {row['msg']}" for row in error.errors())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            faults = str(error)
        raise PolicyError(
            f"{self._path} cannot be used: {faults}; expected `preempt` and [[quotas]] as in docs/scheduling.md, [retention] as in"
            " docs/operations.md; mend the file"
        )
