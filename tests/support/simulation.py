"""A cluster, its queue and a clock that exist only as numbers: what the scheduler decides, carried out event by event.

Owns the invariants, which are checked after every decision. Where gangs come to stand is up to the simulation, not to the plan: Ray
decides it in earnest.
"""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from service.quotas import Owner, Policy
from service.room import Bundle, Ledger, Node, Room
from service.scheduling import Held, Need, Plan, plan

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Submission:
    """A job of the workload: what it asks for, when it comes and how long it takes in truth."""

    need: Need
    at: datetime
    duration: timedelta


def workload(count: int, seed: int, *, over: timedelta, most_workers: int = 512) -> list[Submission]:
    """Return jobs as a training cluster sees them: mostly small, some huge; timeouts honest, generous or never thought about."""
    chance = random.Random(seed)
    sizes = [size for size in (1, 2, 4, 8, 16, 64, 256, 512) if size <= most_workers]
    found = []
    for number in range(count):
        bundle = Bundle(*chance.choices([(4, 1), (12, 1), (1, 0), (0.5, 0)], (6, 2, 1, 1))[0])
        most = chance.choices(sizes, (300, 200, 200, 200, 60, 20, 4, 2)[: len(sizes)])[0]
        least = chance.choice([1, most]) if chance.random() < 0.1 else most
        duration = timedelta(minutes=min(chance.lognormvariate(3.5, 1.2), 1200))
        timeout = chance.choice([duration * 1.1, duration * 3, timedelta(days=1)])
        labels = {"team": chance.choice("abcdefgh")}
        need = Need(f"job_{number:06d}", least, most, bundle, timeout, chance.choice([0, 0, 0, 0, 5, -5]), labels)
        at = START if number < count // 3 else START + over * chance.random()
        found.append(Submission(need, at, duration))
    return found


def nodes(count: int) -> tuple[Node, ...]:
    """Return idle nodes of 8 GPUs and 64 CPUs."""
    return tuple(Node(f"node{number:03d}", 64, 8, 64, 8) for number in range(count))


@dataclass
class Simulation:
    """One run. `decisions_s` are the seconds that each decision took; `started` when each job started."""

    cluster: tuple[Node, ...]
    submissions: list[Submission]
    policy: Policy
    is_scattered: bool = False
    """Gangs stand anywhere, as far from the plan as possible, instead of where the plan would put them."""
    pace: timedelta = timedelta(minutes=5)
    """Between two decisions."""
    now: datetime = START
    queue: dict[str, Submission] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    placed: dict[str, dict[str, int]] = field(default_factory=dict)
    decisions_s: list[float] = field(default_factory=list)
    started: dict[str, datetime] = field(default_factory=dict)
    backfilled: int = 0
    preempted: int = 0
    longest_queue: int = 0
    longest_reserved: timedelta = timedelta(0)
    promise: tuple[str, datetime] | None = None

    def __post_init__(self) -> None:
        self.free = Ledger.of_free(Room(self.cluster))
        self.chance = random.Random(0)
        self.by_id = {one.need.job_id: one for one in self.submissions}
        self.ends: list[tuple[datetime, str]] = []

    def run(self) -> None:
        """Run until every job has ended."""
        arrivals = sorted(self.submissions, key=lambda one: one.at)
        next_ = 0
        while next_ < len(arrivals) or self.queue or self.held:
            while next_ < len(arrivals) and arrivals[next_].at <= self.now:
                self.queue[arrivals[next_].need.job_id] = arrivals[next_]
                next_ += 1
            while self.ends and self.ends[0][0] <= self.now:
                self._end(heapq.heappop(self.ends)[1])
            self.decide()
            assert self.held or next_ < len(arrivals) or not self.queue, f"{len(self.queue)} jobs wait for ever on an idle cluster"
            self.now += self.pace

    def decide(self) -> None:
        """Let the scheduler decide, check it, and do what it says."""
        order = sorted(
            (one.need for one in self.queue.values()), key=lambda need: (-need.priority, self.by_id[need.job_id].at, need.job_id)
        )
        self.longest_queue = max(self.longest_queue, len(order))
        room, held = self._room(), list(self.held.values())
        began = time.thread_time()
        decision = plan(order, room, held, self.policy, self.now)
        self.decisions_s.append(time.thread_time() - began)
        self._check(order, decision)
        for job_id in decision.preempt:
            self._pause(job_id)
        for start in decision.start:
            self._begin(start.job_id, start.workers)

    def _room(self) -> Room:
        one = Bundle(0.0001, 0)
        free = {node.id: self.free.slots_on(node.id, one) / 10_000 for node in self.cluster}
        gpus = {node.id: node.total_gpus for node in self.cluster}
        for job_id, places in self.placed.items():
            for node_id, workers in places.items():
                gpus[node_id] -= workers * self.held[job_id].bundle.gpus
        seen = tuple(replace(node, free_cpus=free[node.id], free_gpus=gpus[node.id]) for node in self.cluster)
        assert all(node.free_gpus >= 0 for node in seen)
        return Room(seen, {job_id: dict(places) for job_id, places in self.placed.items()})

    def _check(self, order: list[Need], decision: Plan) -> None:
        """Assert what must hold of every decision."""
        starts = {start.job_id: start.workers for start in decision.start}
        assert {*starts, *decision.waiting} == {need.job_id for need in order}
        assert not starts.keys() & decision.waiting.keys()
        for need in order:
            assert need.job_id not in starts or need.min_workers <= starts[need.job_id] <= need.max_workers
        self._check_quotas(starts)
        self._check_promise(order, decision)
        if decision.reserved is not None:
            places = {need.job_id: place for place, need in enumerate(order)}
            self.backfilled += sum(places[job_id] > places[decision.reserved.job_id] for job_id in starts)
            for victim in decision.preempt:
                assert self.held[victim].priority < self.by_id[decision.reserved.job_id].need.priority

    def _check_quotas(self, starts: dict[str, int]) -> None:
        running = [(job.labels, job.workers, job.bundle.gpus) for job in self.held.values()]
        running += [(self.by_id[job_id].need.labels, workers, self.by_id[job_id].need.bundle.gpus) for job_id, workers in starts.items()]
        for quota in self.policy.quotas:
            for group in {quota.group_of(Owner(labels, "", "")) for labels, _, _ in running} - {None}:
                mine = [(workers, gpus) for labels, workers, gpus in running if quota.group_of(Owner(labels, "", "")) == group]
                assert quota.running_jobs is None or len(mine) <= quota.running_jobs
                assert quota.workers is None or sum(workers for workers, _ in mine) <= quota.workers
                assert quota.gpus is None or sum(workers * gpus for workers, gpus in mine) <= quota.gpus

    def _check_promise(self, order: list[Need], decision: Plan) -> None:
        """Assert that the reserved job is never made to wait longer than was said first, unless by one that goes before it."""
        first = decision.reserved
        if first is None:
            self.promise = None
            return
        assert first.by is not None, "there is nobody else on this cluster"
        before = {need.job_id for need in order[: [need.job_id for need in order].index(first.job_id)]}
        is_overtaken = any(start.job_id in before for start in decision.start)
        if self.promise is not None and self.promise[0] == first.job_id and not is_overtaken:
            assert first.by <= max(self.promise[1], self.now), f"{first.job_id} was put off from {self.promise[1]} to {first.by}"
        assert first.by >= self.now
        self.longest_reserved = max(self.longest_reserved, first.by - self.now)
        # Where gangs come to stand that start just now is not known yet, so neither is the promise.
        self.promise = None if is_overtaken or decision.preempt else (first.job_id, first.by)

    def _begin(self, job_id: str, workers: int) -> None:
        need = self.by_id[job_id].need
        places = self._scatter(need.bundle, workers) if self.is_scattered else self.free.take(need.bundle, workers)
        if sum(places.values()) < workers:
            assert self.is_scattered, f"{job_id} was to start where it does not fit"
            for node_id, number in places.items():
                self.free.move(node_id, need.bundle, number)
            return
        self.placed[job_id] = places
        self.held[job_id] = Held(
            job_id, workers, need.bundle, need.priority, need.labels, self.now, need.timeout, is_pausable=True, is_leaving=False
        )
        del self.queue[job_id]
        self.started.setdefault(job_id, self.now)
        heapq.heappush(self.ends, (self.now + self.by_id[job_id].duration, job_id))

    def _scatter(self, bundle: Bundle, workers: int) -> dict[str, int]:
        places: dict[str, int] = {}
        for most in (4, workers):
            for node in self.chance.sample(self.cluster, len(self.cluster)):
                number = min(self.free.slots_on(node.id, bundle), workers, most if most > 4 else self.chance.randint(1, most))
                self.free.move(node.id, bundle, -number)
                places[node.id] = places.get(node.id, 0) + number
                workers -= number
                if not workers:
                    return places
        return places

    def _end(self, job_id: str) -> None:
        if job_id in self.held:
            for node_id, workers in self.placed.pop(job_id).items():
                self.free.move(node_id, self.held[job_id].bundle, workers)
            del self.held[job_id]

    def _pause(self, job_id: str) -> None:
        self.preempted += 1
        self.ends = [end for end in self.ends if end[1] != job_id]
        heapq.heapify(self.ends)
        self._end(job_id)
        self.queue[job_id] = self.by_id[job_id]
