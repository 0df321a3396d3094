"""Samples that cannot be read: who names them, who counts them, and how many are too many.

The limit holds for one pass over the data: every sample is visited once in it, so that counts need not be compared with those of other
passes, and over all ranks together, so that it does not depend on their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.errors import BadDataError, PeerLostError

MAX_NAMED = 5
"""Files that the failure of a job names."""
MAX_WARNINGS = 100
"""Files that each rank names in warnings, in one pass."""


@dataclass(frozen=True)
class BadSample:
    """Where it is, and what reading it raised."""

    name: str
    reason: str


class BadSamples:
    """The count of one kind of pass, on every rank alike; the names of those that this rank met."""

    def __init__(self, max_bad: int, warn: Callable[[str, str], None]) -> None:
        """Take the limit, and what emits a warning of a code and a message."""
        self._max_bad, self._warn = max_bad, warn
        self._pass: object = None
        self._count = 0
        self._own: list[BadSample] = []

    def settle(self, number: object, own: Sequence[BadSample], total: int) -> None:
        """Note what was found in a part of a pass.

        Args:
            number: of the pass; the count begins anew with every other one.
            own: found on this rank.
            total: how many were found on all ranks.
        Raises:
            BadDataError: there are more than the limit, and this rank can name some.
            PeerLostError: there are more than the limit, and only other ranks can: they will.
        """
        if number != self._pass:
            self._pass, self._count, self._own = number, 0, []
        for sample in own[: max(0, MAX_WARNINGS - len(self._own))]:
            self._warn("bad_sample", f"{sample.name} cannot be read ({sample.reason}); another sample takes its place")
        self._own += own
        self._count += total
        if self._count > self._max_bad:
            if not self._own:
                raise PeerLostError("another rank has met more samples that cannot be read than data.max_bad allows")
            names = ", ".join(sample.name for sample in self._own[:MAX_NAMED])
            raise BadDataError(
                f"{self._count} samples cannot be read, among them {names} ({self._own[0].reason}); expected at most {self._max_bad} in one"
                " pass over the data; mend or remove the files, or raise data.max_bad"
            )
