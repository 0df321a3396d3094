"""The scheduler's shell: loads the queue and the cluster, has `service.scheduling` decide, and remembers why who waits.

Owns how deep a round looks into the queue, so that a round stays cheap however many jobs wait. Starts and pauses nothing itself.
"""

import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime
from math import inf

import structlog

from service.cluster import Cluster
from service.policy import PolicyFile
from service.quotas import Policy, Quota, Stored
from service.scheduling import Draft, Held, Plan
from service.store.queue import Queued
from service.store.store import Store
from service.waiting import Wait

PAGE = 1_000
NEAR = 1_000
"""Jobs at the front of the queue that every round looks at."""
DEEP_S = 30.0
"""How often a round looks at all of them, for one far behind that may start before others."""
SUM_S = 10.0
"""How old the sums of stored bytes may be."""
NUM_SAID = 50
"""Jobs at the front whose every new message is stored; further behind only a new reason is. `/v1/queue` has the newest of all."""

log = structlog.get_logger()


class Planner:
    """Plans round after round for one cluster."""

    def __init__(self, cluster: Cluster, policy: PolicyFile) -> None:
        self._cluster = cluster
        self._policy = policy
        self._next_deep = 0.0
        self._next_sum = 0.0
        self._stored: dict[Quota, dict[str, int]] = {}
        self._waiting: dict[str, Wait] = {}
        self._grown: dict[str, float] = {}
        """When running jobs were last given more room."""

    @property
    def waiting(self) -> Mapping[str, Wait]:
        """Why each job waits, as far as it was looked at; also of some that wait no longer."""
        return self._waiting

    async def plan(self, store: Store, busy: AbstractSet[str]) -> Plan:
        """Decide what starts now.

        Args:
            store: where the queue is.
            busy: jobs that are queued again while the last of their attempt is still being put away.
        """
        is_deep = time.monotonic() >= self._next_deep
        policy = self._policy.current()
        stored = await self._look_at_storage(store, policy)
        held = [self._rested(job, policy.grow_every_s) for job in await store.queue.held()]
        draft = Draft(await self._cluster.room(), held, policy, datetime.now(UTC), stored)
        near, is_whole = await self._consider(store, draft, busy, is_deep=is_deep)
        decision = draft.plan(is_whole=is_whole)
        self._grown = {job.job_id: self._grown[job.job_id] for job in held if job.job_id in self._grown}
        self._grown |= dict.fromkeys((start.job_id for start in decision.grow), time.monotonic())
        if is_deep:
            self._waiting.clear()
            self._next_deep = time.monotonic() + DEEP_S
        self._waiting.update(decision.waiting)
        await _explain(store, near, decision.waiting)
        return decision

    async def _look_at_storage(self, store: Store, policy: Policy) -> Stored:
        """Return what the groups with a limit of storage have stored, added up now and then: it is a sum over all checkpoints."""
        wanted = {quota for quota in policy.quotas if quota.storage_bytes is not None}
        if time.monotonic() >= self._next_sum or wanted != self._stored.keys():
            self._stored = {quota: await store.usage.stored(quota) for quota in wanted}
            self._next_sum = time.monotonic() + SUM_S
        return self._stored

    def _rested(self, job: Held, grow_every_s: float) -> Held:
        """Leave a job as large as it is that was given room a while ago, unless somebody has asked for more."""
        if job.growth is None or job.growth.is_asked or time.monotonic() - self._grown.get(job.job_id, -inf) >= grow_every_s:
            return job
        return replace(job, growth=None)

    async def _consider(self, store: Store, draft: Draft, busy: AbstractSet[str], *, is_deep: bool) -> tuple[list[Queued], bool]:
        """Show the queue to the draft, page by page, so that the process answers in between.

        Returns:
            The front of it, and whether every job in it was considered.
        """
        near: list[Queued] = []
        is_whole = True
        async for page in store.queue.pages(PAGE):
            for queued in page:
                if queued.need.job_id in busy:
                    is_whole = False
                else:
                    draft.consider(queued.need)
            near += page[: NEAR - len(near)]
            if len(near) >= NEAR and not is_deep:
                return near, is_whole and len(page) < PAGE
        return near, is_whole


async def _explain(store: Store, near: list[Queued], waiting: Mapping[str, Wait]) -> None:
    """Store why the jobs at the front wait, where that is news."""
    news = []
    for place, queued in enumerate(near):
        wait = waiting.get(queued.need.job_id)
        if wait is not None and (queued.reason != wait.reason or (place < NUM_SAID and queued.message != wait.message)):
            news.append((queued.need.job_id, wait.reason, wait.message))
    await store.jobs.explain(news)
