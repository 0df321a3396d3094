"""Which running jobs are paused to make room for one of higher priority. Pure; whether at all is the operator's policy."""

from collections.abc import Sequence
from typing import Protocol

from service.room import Bundle, Ledger, Places


class Running(Protocol):
    """What is looked at of a live job."""

    @property
    def job_id(self) -> str:
        """The job."""

    @property
    def bundle(self) -> Bundle:
        """What each worker holds."""

    @property
    def priority(self) -> int:
        """Higher ones start first."""

    @property
    def is_pausable(self) -> bool:
        """Whether it can be paused now."""

    @property
    def is_leaving(self) -> bool:
        """Its end was asked for: its room is as good as free."""


def victims(bundle: Bundle, workers: int, priority: int, held: Sequence[tuple[Running, Places]], free: Ledger) -> list[str]:
    """Return the jobs to pause so that `workers` fit: of lower priority only, the lowest first, then the youngest; as few as will do.

    Nobody is paused where all of them together would not make the room, or where gangs that are leaving make it already.

    Args:
        bundle: what each worker takes.
        workers: how many have to fit.
        priority: of the job that waits.
        held: every live job and where it stands.
        free: what nobody holds.
    """
    then = free.copy()
    for job, places in held:
        if job.is_leaving:
            _move(then, job, places, 1)
    below = [(job, places) for job, places in held if job.is_pausable and job.priority < priority]
    # Ids sort by age, so the youngest has the greatest.
    below.sort(key=lambda one: one[0].job_id, reverse=True)
    below.sort(key=lambda one: one[0].priority)
    chosen: list[tuple[Running, Places]] = []
    for job, places in below:
        if then.slots(bundle) >= workers:
            break
        _move(then, job, places, 1)
        chosen.append((job, places))
    if then.slots(bundle) < workers:
        return []
    for job, places in reversed(chosen.copy()):
        # A later and larger one may have made the room alone.
        _move(then, job, places, -1)
        if then.slots(bundle) >= workers:
            chosen.remove((job, places))
        else:
            _move(then, job, places, 1)
    return [job.job_id for job, _ in chosen]


def _move(ledger: Ledger, job: Running, places: Places, sign: int) -> None:
    for node_id, number in places.items():
        ledger.move(node_id, job.bundle, sign * number)
