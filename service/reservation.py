"""The room kept for the first job that waits for room: when it can have it at the latest, and what may run meanwhile. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from service.room import Bundle, Ledger, Places, most_displaced

Release = tuple[datetime, Bundle, Places]
"""When a gang has ended at the latest, what each of its workers holds, and where they stand."""


@dataclass
class Reservation:
    """Room for `workers` at time `at`. None: no end of ours makes the room, somebody else holds it."""

    job_id: str
    at: datetime | None
    _bundle: Bundle
    _spare: int
    """Workers more than it needs that would fit at that time; gangs admitted since are subtracted, wherever they may stand."""
    _then: Ledger
    """What is free at that time but for gangs admitted since."""
    _worst: Ledger
    """The same, less every gang admitted since on every node where it may stand, on all of them at once."""
    _workers: int

    def outlasts(self, end: datetime) -> bool:
        """Return whether a gang that ends by then is gone before the room is needed."""
        return self.at is not None and end <= self.at

    def harmless(self, bundle: Bundle, least: int, most: int) -> int:
        """Admit a gang that may stay for longer, if the reserved job has its room wherever Ray puts the gang.

        Returns:
            The most workers between `least` and `most` that are found harmless by either of two bounds on what they take from the
            reserved job; 0 where not even `least` are.
        """
        displaced = most_displaced(bundle, self._bundle)
        for workers in sorted({most, max(min(most, self._spare // displaced), least), least}, reverse=True):
            worst = self._worst.without_anywhere(bundle, workers, self._then)
            if workers * displaced <= self._spare or worst.slots(self._bundle) >= self._workers:
                self._spare -= workers * displaced
                self._worst = worst
                return workers
        return 0


def reserve(job_id: str, bundle: Bundle, workers: int, *, free: Ledger, everything: Ledger, releases: Iterable[Release]) -> Reservation:
    """Find the earliest time by which gangs have ended that make room for `workers`, if each lasts as long as it may.

    Args:
        job_id: the job that waits.
        bundle: what each of its workers takes.
        workers: how many it needs at least.
        free: what is free now.
        everything: what there is; the job fits into it.
        releases: of every gang that lives.
    """
    then = free.copy()
    slots = then.slots(bundle)
    for at, taken, places in sorted(releases, key=lambda release: release[0]):
        for node_id, number in places.items():
            slots -= then.slots_on(node_id, bundle)
            then.move(node_id, taken, number)
            slots += then.slots_on(node_id, bundle)
        if slots >= workers:
            return Reservation(job_id, at, bundle, slots - workers, then, then.copy(), workers)
    return Reservation(job_id, None, bundle, everything.slots(bundle) - workers, everything, everything.copy(), workers)
