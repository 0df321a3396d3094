"""Which gangs on the cluster belong to no live attempt, and their end.

A controller that loses its lease, or its life, while a thread of it forms a gang may leave processes behind under the name of an attempt
that others have closed meanwhile. Nobody would look for that name again.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import structlog

from service.cluster import Cluster, ClusterError
from service.states import HOLDS_GANG, State
from service.store.store import Store

SWEEP_S = 10.0
"""Time between two looks. What is left in two of them in a row is ended, so that who is just ending it himself may do so."""

AttemptName = tuple[str, int]
"""Job id and number of the attempt."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Standing:
    """Where a job stands in the store."""

    state: State
    attempt: int


def abandoned(found: Collection[AttemptName], standings: Mapping[str, Standing]) -> set[AttemptName]:
    """Return which of the attempts that have processes or room on the cluster nobody looks after, nor ever will.

    An attempt is open in the store before anything of it is on the cluster, and once it is closed it stays so. So what was on the cluster
    before the store was read, and is closed there, is abandoned: that needs no clock, and no lease.

    Args:
        found: on the cluster, looked at first.
        standings: by job id, read afterwards. A job that is not there may be of another installation, or the database may be an older
            one, put back from a backup; so may it be where an attempt is unheard of. These are left alone.

    >>> abandoned([("job_A", 1), ("job_A", 2), ("job_A", 3), ("job_B", 1)], {"job_A": Standing(State.RUNNING, 2)})
    {('job_A', 1)}
    """
    closed = set()
    for job_id, attempt in found:
        standing = standings.get(job_id)
        if standing is not None and (attempt < standing.attempt or (attempt == standing.attempt and standing.state not in HOLDS_GANG)):
            closed.add((job_id, attempt))
    return closed


async def sweep(store: Store, cluster: Cluster, suspects: Collection[AttemptName]) -> set[AttemptName]:
    """End what was abandoned at the last look already; return what is now.

    Args:
        store: says which attempts are open.
        cluster: where gangs are.
        suspects: what the last look returned.
    Raises:
        ClusterError: the cluster did not say what is there.
        DatabaseAwayError: the store did not.
    """
    found = await cluster.present()
    jobs = await store.jobs.of_ids({job_id for job_id, _ in found})
    lasting = found & set(suspects)
    for job_id, attempt in sorted(lasting):
        log.warning("abandoned_gang", job=job_id, attempt=attempt)
        try:
            await cluster.dissolve(job_id, attempt)
        except ClusterError as error:
            log.warning("abandoned_gang_not_ended", job=job_id, attempt=attempt, error=str(error))
    return lasting | abandoned(found, {job.id: Standing(job.state, job.attempt) for job in jobs})
