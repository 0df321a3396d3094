"""What the ranks of an attempt are told, and the marker file that proves to them that the storage is shared.

Owns the markers in the storage. Decides from which checkpoint an attempt starts: its own latest, else the one that the
spec names.
"""

import asyncio
from collections.abc import Callable, Sequence

from service.artifacts import Artifacts
from service.catalogue import align
from service.errors import NotFoundError
from service.states import State
from service.store.records import Job
from service.store.store import Store
from worker.contract import Assignment
from worker.storage.storage import Storage

MARKERS = ".gangs"


class Assignments:
    """Makes assignments for attempts of jobs."""

    def __init__(self, store: Store, storage: Storage) -> None:
        self._store = store
        self._storage = storage
        self._artifacts = Artifacts(store, storage)

    async def prepare(self, job: Job, places: Sequence[int], generation: int = 1) -> Callable[[int, str, int], Assignment]:
        """Write the attempt's marker and return the function from (place, store host, store port) to assignment.

        Args:
            job: as it is now.
            places: of which the gang consists, in order: the first is rank 0.
            generation: which group of the attempt the assignments are for. Where something may be, they say what is on record already.
        Raises:
            FileNotFoundError: the checkpoint or the code that the spec names is gone.
            OSError: the storage cannot be written.
        """
        resume = await self._resume(job)
        code = await self._code(job)
        marker = _marker(job)
        await asyncio.to_thread(self._storage.mark, marker)
        cursors = await self._store.events.cursors(job.id, job.attempt)
        reported = await self._store.metrics.last_steps(job.id) if generation > 1 or job.attempt > 1 else None

        def assignment(place: int, store_host: str, store_port: int) -> Assignment:
            return Assignment(
                job_id=job.id,
                attempt=job.attempt,
                fence=job.fence,
                generation=generation,
                rank=places.index(place),
                world_size=len(places),
                spec=job.spec,
                storage=self._storage.address,
                marker=marker,
                begins=job.state is State.STARTING,
                resume=resume,
                code_sha256=code,
                store_host=store_host,
                store_port=store_port,
                after_seq=cursors.get(place, 0),
                reported=reported,
            )

        return assignment

    async def discard(self, job: Job) -> None:
        """Clear up after an attempt whose ranks are gone: its marker, what is half-written, what was published unheard."""
        await asyncio.to_thread(self._storage.unmark, _marker(job))
        await asyncio.to_thread(self._storage.sweep, job.id)
        await align(self._store, self._storage, job.id)

    async def _code(self, job: Job) -> str | None:
        if job.spec.code is None:
            return None
        bundle = await self._store.bundles.get(job.spec.code)
        if bundle is None:
            raise FileNotFoundError(f"code {job.spec.code} is gone; upload it again")
        return bundle.sha256

    async def _resume(self, job: Job) -> str | None:
        await align(self._store, self._storage, job.id)
        own = await self._store.checkpoints.of(job.id)
        if own:
            return f"{job.id}/{own[0].step}"
        if job.spec.initialize_from is None:
            return None
        source, _, which = job.spec.initialize_from.partition("/checkpoints/")
        try:
            found = await self._artifacts.find(source, which)
        except NotFoundError as error:
            raise FileNotFoundError(f"initialize_from {job.spec.initialize_from} is gone: {error.detail}") from error
        return f"{source}/{found.step}"


def _marker(job: Job) -> str:
    return f"{MARKERS}/{job.id}-{job.attempt}"
