"""The reconciler: again and again loads the live jobs, decides, applies. Starts what is queued, supervises what lives.

Owns the supervisors of this process and the connection to the cluster. What starts is decided in `service.planner`. A supervisor
that fails is run again by the next round; so is everything after a restart of the controller. Of several controllers each looks after
the jobs whose lease it has (`service.tenure`), and one plans the queue.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import structlog

from service.assignments import Assignments
from service.cluster import Cluster, ClusterError
from service.embedded import EmbeddedRayError
from service.norm_choice import choose_norms
from service.planner import NUM_SAID, Planner
from service.policy import PolicyFile
from service.room import Room
from service.scheduling import Plan, Start
from service.states import HOLDS_GANG, State
from service.store.errors import DatabaseAwayError, LeaseLostError
from service.store.queue import PREEMPTED
from service.store.records import Job
from service.store.store import Store
from service.supervisor import Supervisor
from service.sweeping import SWEEP_S, AttemptName, sweep
from service.tenure import Tenure
from service.waiting import Wait
from worker.storage.storage import Storage

ROUND_S = 1.0
"""Longest time between two rounds; a submission or a cancel starts one at once."""
RECONNECT_S = 5.0
JOB_LEASES = "job/"
PLANNER = "scheduler"
"""The lease of the one controller that decides which jobs start."""
LOSS_LOOK_S = 5.0
"""How often the cluster is looked at for having gone for good."""

log = structlog.get_logger()


class Reconciler:
    """Runs the jobs of one store on one cluster."""

    def __init__(self, cluster: Cluster, storage: Storage, policy: PolicyFile) -> None:
        self._cluster = cluster
        self._planner = Planner(cluster, policy)
        self._storage = storage
        self._supervisors: dict[str, tuple[Supervisor, asyncio.Task[None]]] = {}
        self._rounds: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._tenure: Tenure | None = None
        self._condition = "connecting to the cluster"
        self._next_look = 0.0

    async def start(self, store: Store) -> None:
        """Begin; returns at once. Until the cluster is there, jobs wait in the queue."""
        self._tenure = Tenure(store)
        self._rounds = asyncio.create_task(self._run(store, self._tenure))
        self._renewal = asyncio.create_task(self._tenure.keep(self._let_go))
        self._sweeping = asyncio.create_task(self._sweep(store, self._tenure))

    async def stop(self) -> None:
        """Let go of everything. Gangs go on training; the next controller adopts them."""
        for task in (self._rounds, self._renewal, self._sweeping):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._end_supervisors()
        if self._tenure is not None:
            with contextlib.suppress(DatabaseAwayError):
                await self._tenure.end()
        await self._cluster.disconnect()

    async def view(self) -> dict[str, Any]:
        """Return the cluster as `GET /v1/cluster` shows it."""
        if self._condition:
            return {"is_connected": False, "message": self._condition, "nodes": [], "room": None, "gangs": []}
        try:
            room, nodes = await self._cluster.room(), await self._cluster.nodes()
        except ClusterError as error:
            return {"is_connected": False, "message": str(error), "nodes": [], "room": None, "gangs": []}
        return {
            "is_connected": True,
            "message": "",
            "nodes": _with_free(nodes, room),
            "room": _sums(room),
            "gangs": sorted(self._supervisors),
        }

    @property
    def waiting(self) -> Mapping[str, Wait]:
        """Why each queued job waits, as far as the last rounds looked at it."""
        return self._planner.waiting

    async def _run(self, store: Store, tenure: Tenure) -> None:
        while True:
            await self._connect(store)
            store.changes.jobs.clear()
            try:
                await self._round(store, tenure)
                await self._look_for_loss()
            except ClusterError as error:
                log.warning("cluster_not_responding", error=str(error))
            except (DatabaseAwayError, LeaseLostError) as error:
                log.warning("round_given_up", error=str(error))
            except Exception:
                log.exception("round_failed")  # the outermost loop: a fault of one round must not end all rounds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_S):
                    await store.changes.jobs.wait()

    async def _sweep(self, store: Store, tenure: Tenure) -> None:
        """Again and again end gangs that no live attempt owns; by one controller, since one is enough."""
        suspects: set[AttemptName] = set()
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._condition or tenure.under(PLANNER) is None:
                suspects = set()
                continue
            try:
                suspects = await sweep(store, self._cluster, suspects)
            except (ClusterError, DatabaseAwayError) as error:
                log.warning("sweep_given_up", error=str(error))
            except Exception:
                log.exception("sweep_failed")  # the outermost loop, like that of the rounds

    async def _connect(self, store: Store) -> None:
        while self._condition:
            try:
                await self._cluster.connect()
            except (ClusterError, EmbeddedRayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
                self._condition = f"the cluster cannot be reached: {error}"
                log.warning("cluster_not_reached", error=str(error))
                front = await store.jobs.queue(0, NUM_SAID)
                await store.jobs.explain([(job.id, "no_cluster", self._condition[:500]) for job in front])
                await asyncio.sleep(RECONNECT_S)
            else:
                self._condition = ""
                log.info("cluster_connected")

    async def _look_for_loss(self) -> None:
        """Where the cluster is gone, have it connected anew, and every live job looked at anew: its gang is gone too."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOSS_LOOK_S
        if await self._cluster.is_lost():
            self._condition = "the cluster was lost"
            log.error("cluster_lost", jobs=sorted(self._supervisors))
            await self._end_supervisors()

    async def _end_supervisors(self) -> None:
        tasks = [task for _, task in self._supervisors.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _round(self, store: Store, tenure: Tenure) -> None:
        live = await store.jobs.in_states(HOLDS_GANG)
        await tenure.take([PLANNER, *(_lease_of(job.id) for job in live)])
        # Read anew under the lease: whoever had it, a supervisor of this controller too, may have brought the job further meanwhile.
        unattended = await store.jobs.of_ids([job.id for job in live if job.id not in self._supervisors])
        for job in [*(job for job in live if job.id in self._supervisors), *unattended]:
            if job.state in HOLDS_GANG:
                self._supervise(tenure, job)
        planning = tenure.under(PLANNER)
        if planning is not None:
            await self._schedule(planning, tenure)

    def _supervise(self, tenure: Tenure, job: Job) -> None:
        """Have a live job supervised, where its lease is here, and its supervisor know of a cancel, a pause or a resize."""
        if job.id in self._supervisors:
            if job.state is State.CANCELLING:
                self._supervisors[job.id][0].cancel()
            elif job.state is State.PAUSING:
                self._supervisors[job.id][0].pause()
            self._supervisors[job.id][0].resize(job.resize_to, job.resize_why)
        elif (store := tenure.under(_lease_of(job.id))) is not None:
            supervisor = self._supervisor(store, job)
            self._spawn(store, job, supervisor, supervisor.adopt())

    async def _schedule(self, planning: Store, tenure: Tenure) -> None:
        await planning.queue.requeue_preempted()
        decision = await self._planner.plan(planning, set(self._supervisors))
        await _make_room(planning, decision)
        for grown in decision.grow:
            if await planning.resizes.grant(grown.job_id, grown.workers):
                planning.changes.jobs.set()
        # Before they are live, so that no other controller takes them for abandoned.
        await tenure.take([_lease_of(start.job_id) for start in decision.start])
        for start in decision.start:
            store = tenure.under(_lease_of(start.job_id))
            if store is not None:
                await self._start(planning, store, start)
        # Last, so that whatever may go wrong with it keeps no other job from starting.
        await choose_norms(planning)

    async def _start(self, planning: Store, store: Store, start: Start) -> None:
        history = (await store.jobs.transitions_of([start.job_id]))[start.job_id]
        if not history:
            return  # deleted since the plan was made
        # Stored before Ray is touched: from here on a killed controller finds the attempt and cleans up after it.
        await planning.attempts.begin(start.job_id, history[-1].reason, start.workers)
        job = await store.jobs.get(start.job_id)
        if job is not None and job.state is State.STARTING:
            supervisor = self._supervisor(store, job)
            self._spawn(store, job, supervisor, supervisor.form())

    def _let_go(self, lease: str) -> None:
        """Stop supervising a job that another controller may have taken over; its gang goes on."""
        found = self._supervisors.get(lease.removeprefix(JOB_LEASES))
        if found is not None:
            found[1].cancel()

    def _supervisor(self, store: Store, job: Job) -> Supervisor:
        return Supervisor(store, self._cluster, Assignments(store, self._storage), job)

    def _spawn(self, store: Store, job: Job, supervisor: Supervisor, work: Any) -> None:
        task = asyncio.create_task(work, name=f"supervisor {job.id}")
        self._supervisors[job.id] = (supervisor, task)
        task.add_done_callback(lambda task: self._forget(store, job.id, task))

    def _forget(self, store: Store, job_id: str, task: asyncio.Task[None]) -> None:
        del self._supervisors[job_id]
        if self._tenure is not None:
            self._tenure.drop(JOB_LEASES + job_id)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, LeaseLostError | DatabaseAwayError):
            log.warning("supervisor_let_go", job=job_id, error=str(error))
        elif error is not None:
            log.error("supervisor_failed", job=job_id, exc_info=error)
        else:
            store.changes.jobs.set()  # its room is free


async def _make_room(store: Store, decision: Plan) -> None:
    """Have the victims of a job of higher priority paused. They save, give their room back, and are queued again by a later round."""
    for job_id in decision.preempt:
        message = "makes room for a job of higher priority"
        if await store.jobs.transition(job_id, State.PAUSING, from_={State.RUNNING}, reason=PREEMPTED, message=message):
            log.info("job_preempted", job=job_id)
            store.changes.jobs.set()


def _lease_of(job_id: str) -> str:
    return JOB_LEASES + job_id


def _sums(room: Room) -> dict[str, Any]:
    return {name: getattr(room, name) for name in ("total_cpus", "total_gpus", "free_cpus", "free_gpus")}


def _with_free(nodes: list[dict[str, Any]], room: Room) -> list[dict[str, Any]]:
    free = {node.id: {"CPU": node.free_cpus, "GPU": node.free_gpus} for node in room.nodes}
    return [node | {"free": free.get(node["id"], {})} for node in nodes]
