"""Why a job waits, in words: a reason for machines, a message for people. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.room import Bundle, Ledger


@dataclass(frozen=True)
class Wait:
    """Why a job waits."""

    reason: str
    message: str


def too_large(bundle: Bundle, workers: int, everything: Ledger) -> Wait:
    """Not even the idle cluster could hold it."""
    remedy = "add nodes or use fewer workers"
    if everything.most_on_a_node(bundle) == 0 and workers * bundle.cpus <= everything.cpus and workers * bundle.gpus <= everything.gpus:
        each = counted(bundle.cpus, "CPU") + (f" and {counted(bundle.gpus, 'GPU')}" if bundle.gpus else "")
        return Wait("too_large", f"each worker needs {each}, which no single node has; add larger nodes or use smaller workers")
    return Wait("too_large", f"{_needs(bundle, workers, everything)} in the whole cluster; {remedy}")


def over_quota(why: str) -> Wait:
    """Its quota would not let it start even if it ran alone."""
    return Wait("over_quota", f"{why}; use fewer workers or have the quota raised")


def in_quota(why: str) -> Wait:
    """Its quota is used up for now."""
    return Wait("quota", why)


def no_room(bundle: Bundle, workers: int, free: Ledger) -> Wait:
    """It is the first that waits for room."""
    return Wait("no_room", _needs(bundle, workers, free, "free"))


def preempting(bundle: Bundle, workers: int, free: Ledger, jobs: Sequence[str]) -> Wait:
    """Room is being made for it."""
    verb = "is" if len(jobs) == 1 else "are"
    return Wait("no_room", f"{_needs(bundle, workers, free, 'free')}; {' and '.join(jobs)} of lower priority {verb} being paused")


def behind(bundle: Bundle, workers: int, free: Ledger, first: str) -> Wait:
    """It waits behind the job that has its room reserved."""
    if free.slots(bundle) < workers:
        return no_room(bundle, workers, free)
    return Wait("behind", f"fits, but could make {first} wait longer; a shorter timeout_s may let it in")


def in_line(position: int) -> str:
    """Return a place in the queue in words.

    >>> in_line(1), in_line(2), in_line(11), in_line(23)
    ('next in line', '2nd in line', '11th in line', '23rd in line')
    """
    if position == 1:
        return "next in line"
    teen = 10 <= position % 100 <= 20
    return f"{position}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(position % 10, 'th')} in line"


def counted(amount: float, noun: str) -> str:
    """Return an amount with its noun.

    >>> counted(1, "CPU"), counted(0.5, "CPU"), counted(8, "GPU")
    ('1 CPU', '0.5 CPUs', '8 GPUs')
    """
    return f"{amount:g} {noun}{'' if amount == 1 else 's'}"


def _needs(bundle: Bundle, workers: int, ledger: Ledger, state: str = "") -> str:
    """Name what is short: GPUs, CPUs, or neither but nodes on which a whole worker fits."""
    suffix = f" {state}" if state else ""
    if workers * bundle.gpus > ledger.gpus:
        return f"needs {counted(workers * bundle.gpus, 'GPU')}, {ledger.gpus}{suffix}"
    if workers * bundle.cpus > ledger.cpus:
        return f"needs {counted(workers * bundle.cpus, 'CPU')}, {ledger.cpus:g}{suffix}"
    each = counted(bundle.cpus, "CPU") + (f" and {counted(bundle.gpus, 'GPU')}" if bundle.gpus else "")
    return f"needs {counted(workers, 'worker')} of {each} each, {ledger.slots(bundle)} fit{suffix and ' into what is free on the nodes'}"
