"""Every process that one program starts, directly or through others, known by a mark in its environment that they inherit.

Owns how they are started; how they are found and ended is `service.processes`.
"""

import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from service.processes import end_marked, marked
from service.settings import inherited_environment

MARK = "SYNCBN_DEMO"
END_TIMEOUT_S = 15.0


class Family:
    """The processes that carry one mark."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def start(self, command: Sequence[str], *, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a member, in a session of its own so that a terminal's Ctrl-C does not reach it; output is piped where there is no log.

        The user's SYNCBN_ variables are not passed on: they are about another controller than the one that a family runs.
        """
        environment = {name: value for name, value in inherited_environment().items() if not name.startswith("SYNCBN_")}
        # setproctitle, which Ray's workers use, writes over the environment that /proc shows, unless told not to.
        environment |= {MARK: self.mark, "SPT_NOENV": "1", "PYTHONUNBUFFERED": "1"}
        if log is None:
            return _start(command, environment, subprocess.PIPE)
        with log.open("ab") as output:
            return _start(command, environment, output.fileno())

    def members(self) -> Iterator[psutil.Process]:
        """Yield every living process with the mark."""
        return marked(MARK, self.mark)

    def end(self) -> None:
        """Kill every member; return when none is left.

        Raises:
            ProcessesLeftError: some would not go within END_TIMEOUT_S.
        """
        end_marked(MARK, self.mark, END_TIMEOUT_S)


def _start(command: Sequence[str], environment: dict[str, str], output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own command lines
        list(command), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
