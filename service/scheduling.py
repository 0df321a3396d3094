"""Which queued jobs start now, which running ones make room or grow, and why the others wait. Pure; rules and proof: docs/scheduling.md.

Priority, then age; gangs all or nothing; the first job that finds no room has the room it needs reserved, and a job behind it starts
only where that cannot make it wait longer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from service import waiting
from service.preemption import victims
from service.quotas import Account, Accounts, Policy, Stored
from service.reservation import Reservation, reserve
from service.room import Bundle, Ledger, Places, Room
from service.waiting import Wait

GRACE: Final = timedelta(minutes=3)
"""Most that starting and ending take together, which `timeout_s` does not count."""


@dataclass(frozen=True)
class Need:
    """What one queued job asks for. A gang of any number of workers between the two may start."""

    job_id: str
    min_workers: int
    max_workers: int
    bundle: Bundle
    timeout: timedelta
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    project: str = ""
    submitter: str = ""


@dataclass(frozen=True)
class Growth:
    """How many workers a running job may be given in place of those it holds."""

    least: int
    most: int
    is_asked: bool
    """Somebody waits for it."""


@dataclass(frozen=True)
class Held:
    """What one live job holds."""

    job_id: str
    workers: int
    bundle: Bundle
    priority: int
    labels: Mapping[str, str]
    running_since: datetime | None
    """When its present attempt began to train; None while it starts."""
    timeout: timedelta
    """How long it may run, counted from then."""
    is_pausable: bool
    is_leaving: bool
    """Its end was asked for: its room is as good as free."""
    project: str = ""
    submitter: str = ""
    growth: Growth | None = None
    """None where it may not be given any now."""

    def ends_by(self, now: datetime) -> datetime:
        """Return when its room is free again at the latest."""
        return now if self.is_leaving else max((self.running_since or now) + self.timeout + GRACE, now)


@dataclass(frozen=True)
class Start:
    """A gang to form, or to enlarge to so many workers."""

    job_id: str
    workers: int


@dataclass(frozen=True)
class Reserved:
    """The first job that waits for room, and when it has it at the latest. None: others than our jobs hold it."""

    job_id: str
    by: datetime | None


@dataclass(frozen=True)
class Plan:
    """The gangs to form, in order; the running jobs to pause; why every other job that was considered waits; the gangs to enlarge."""

    start: tuple[Start, ...]
    preempt: tuple[str, ...]
    waiting: Mapping[str, Wait]
    reserved: Reserved | None = None
    grow: tuple[Start, ...] = ()


class Draft:
    """A plan in the making: jobs are considered one by one, in the order in which they should start."""

    def __init__(self, room: Room, held: Sequence[Held], policy: Policy, now: datetime, stored: Stored = MappingProxyType({})) -> None:
        self._room = room
        self._policy = policy
        self._now = now
        self._all = Ledger.of_all(room)
        self._free = Ledger.of_free(room)
        self._held: dict[str, tuple[Held, Places]] = {}
        self._accounts = Accounts(policy.quotas, stored)
        self._count_in(held)
        self._reservation: Reservation | None = None
        self._refused: dict[tuple[Bundle, int, int, bool], Wait] = {}
        self._capacity: dict[Bundle, int] = {}
        self._start: list[Start] = []
        self._preempt: tuple[str, ...] = ()
        self._waiting: dict[str, Wait] = {}

    def _count_in(self, held: Sequence[Held]) -> None:
        """Count as taken what our own gangs hold, also where Ray has not placed it yet or has not said so."""
        unclaimed = self._all.copy()
        for job in held:
            for node_id, workers in self._room.placed.get(job.job_id, {}).items():
                unclaimed.move(node_id, job.bundle, -workers)
        # Taken, and not by a gang whose place is known: it is there that the others stand, as far as Ray has placed them.
        unexplained = unclaimed.beyond(self._free)
        self._free.limit(unclaimed)
        for job in held:
            places = self._room.placed.get(job.job_id, {})
            missing = job.workers - sum(places.values())
            self._held[job.job_id] = (job, self._assumed(job, missing, places, unexplained) if missing > 0 else places)
            for account in self._accounts.of(job):
                account.charge(job.workers, job.bundle.gpus)

    def _assumed(self, job: Held, missing: int, places: Places, unexplained: Ledger) -> Places:
        taken = Counter(unexplained.take(job.bundle, missing))
        return Counter(places) + taken + Counter(self._free.take(job.bundle, missing - taken.total()))

    def consider(self, need: Need) -> None:
        """Start a job, or say why it waits."""
        accounts = self._accounts.of(need)
        refusal = self._outright(need, accounts) or _by_quota(need, accounts)
        if refusal is not None:
            self._waiting[need.job_id] = refusal
        else:
            self._place(need, accounts)

    def plan(self, *, is_whole: bool = True) -> Plan:
        """Return what was decided.

        Args:
            is_whole: every queued job was considered: only then may what is left go to jobs that run already.
        """
        first = self._reservation
        reserved = None if first is None else Reserved(first.job_id, first.at)
        grow = tuple(self._growth()) if is_whole and first is None else ()
        return Plan(tuple(self._start), self._preempt, self._waiting, reserved, grow)

    def _growth(self) -> Iterator[Start]:
        """Give the room that nobody waits for to running jobs that want it: priority, then age."""
        for job, _ in sorted(self._held.values(), key=lambda held: (-held[0].priority, held[0].job_id)):
            if job.growth is None:
                continue
            more = min(job.growth.most - job.workers, self._free.slots(job.bundle))
            accounts = self._accounts.of(job)
            for account in accounts:
                more = account.left(more, job.bundle.gpus, jobs=0)
            if more > 0 and job.workers + more >= job.growth.least:
                self._free.take(job.bundle, more)
                for account in accounts:
                    account.charge(more, job.bundle.gpus, jobs=0)
                yield Start(job.job_id, job.workers + more)

    def _outright(self, need: Need, accounts: Sequence[Account]) -> Wait | None:
        """Refuse what could not start even if nobody else was there; it keeps nobody waiting."""
        capacity = self._capacity.get(need.bundle)
        if capacity is None:
            capacity = self._capacity[need.bundle] = self._all.slots(need.bundle)
        if capacity < need.min_workers:
            return waiting.too_large(need.bundle, need.min_workers, self._all)
        for account in accounts:
            if account.most_ever(need.min_workers, need.bundle.gpus) < need.min_workers:
                return waiting.over_quota(account.why(need.min_workers, need.bundle.gpus, is_alone=True))
        return None

    def _place(self, need: Need, accounts: Sequence[Account]) -> None:
        """Start a job where there is room that it may have; the first without room has its room reserved."""
        is_short = self._reservation is not None and self._reservation.outlasts(self._now + need.timeout + GRACE)
        kind = (need.bundle, need.min_workers, need.max_workers, is_short)
        # What is free only shrinks while a plan is made, so what found no place once finds none later.
        refusal = self._refused.get(kind)
        if refusal is None and (workers := self._workers(need, accounts, is_short)):
            self._begin(need, accounts, workers)
            return
        if self._reservation is None:
            refusal = self._reserve(need, accounts)
        elif refusal is None:
            refusal = waiting.behind(need.bundle, need.min_workers, self._free, self._reservation.job_id)
            self._refused[kind] = refusal
        self._waiting[need.job_id] = refusal

    def _workers(self, need: Need, accounts: Sequence[Account], is_short: bool) -> int:
        """Return how many workers may start now, 0 for none."""
        most = min(need.max_workers, self._free.slots(need.bundle))
        for account in accounts:
            most = account.left(most, need.bundle.gpus)
        if most < need.min_workers:
            return 0
        if self._reservation is None or is_short:
            return most
        return self._reservation.harmless(need.bundle, need.min_workers, most)

    def _begin(self, need: Need, accounts: Sequence[Account], workers: int) -> None:
        places = self._free.take(need.bundle, workers)
        for account in accounts:
            account.charge(workers, need.bundle.gpus)
        job = Held(need.job_id, workers, need.bundle, need.priority, need.labels, None, need.timeout, is_pausable=False, is_leaving=False)
        self._held[need.job_id] = (job, places)
        self._start.append(Start(need.job_id, workers))

    def _reserve(self, need: Need, accounts: Sequence[Account]) -> Wait:
        """Keep for the first job without room what it needs, at the time when it can have it; make room if the policy says so."""
        doomed = (
            victims(need.bundle, need.min_workers, need.priority, list(self._held.values()), self._free) if self._policy.preempt else ()
        )
        self._preempt = tuple(doomed)
        releases = [
            (self._now if job.job_id in doomed else job.ends_by(self._now), job.bundle, places) for job, places in self._held.values()
        ]
        self._reservation = reserve(need.job_id, need.bundle, need.min_workers, free=self._free, everything=self._all, releases=releases)
        # Its quota is kept for it too.
        for account in accounts:
            account.charge(need.min_workers, need.bundle.gpus)
        if doomed:
            return waiting.preempting(need.bundle, need.min_workers, self._free, self._preempt)
        return waiting.no_room(need.bundle, need.min_workers, self._free)


def _by_quota(need: Need, accounts: Sequence[Account]) -> Wait | None:
    for account in accounts:
        if account.left(need.min_workers, need.bundle.gpus) < need.min_workers:
            why = account.why(need.min_workers, need.bundle.gpus)
            # Else small jobs of the group could take, again and again, what a large one before them waits for.
            for same in accounts:
                same.is_closed = True
            return waiting.in_quota(why)
    return None


def plan(  # noqa: PLR0917 - what a plan is made of
    queue: Iterable[Need], room: Room, held: Sequence[Held], policy: Policy, now: datetime, stored: Stored = MappingProxyType({})
) -> Plan:
    """Decide about a whole queue.

    Args:
        queue: what the queued jobs ask for, in the order in which they should start: priority, then age.
        room: the cluster as it was seen.
        held: the live jobs.
        policy: quotas, and whether to preempt.
        now: the present time.
        stored: what the groups of quotas have stored.

    >>> from service.room import Node
    >>> node = Node("n", total_cpus=8, total_gpus=0, free_cpus=4, free_gpus=0)
    >>> hour = timedelta(hours=1)
    >>> queue = [Need(name, n, n, Bundle(1, 0), hour) for name, n in (("a", 2), ("b", 8), ("c", 1))]
    >>> decision = plan(queue, Room((node,)), [], Policy(), datetime(2026, 1, 1))
    >>> decision.start, decision.waiting["b"].message, decision.waiting["c"].message
    ((Start(job_id='a', workers=2),), 'needs 8 CPUs, 2 free', 'fits, but could make b wait longer; a shorter timeout_s may let it in')
    """
    draft = Draft(room, held, policy, now, stored)
    for need in queue:
        draft.consider(need)
    return draft.plan()
