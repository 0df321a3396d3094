"""What the ranks of an attempt are told, and the marker file that proves to them that the storage is shared.

Owns the marker files under the storage root. Decides from which checkpoint an attempt starts: its own latest, else the one that the
spec names.
"""

from collections.abc import Callable
from pathlib import Path

from service.artifacts import Artifacts
from service.catalogue import align
from service.errors import NotFoundError
from service.states import State
from service.store.records import Job
from service.store.store import Store
from worker.contract import Assignment

MARKERS = ".gangs"


class Assignments:
    """Makes assignments for attempts of jobs."""

    def __init__(self, store: Store, storage: Path) -> None:
        self._store = store
        self._storage = storage
        self._artifacts = Artifacts(store, storage)

    async def prepare(self, job: Job, generation: int = 1) -> Callable[[int, str, int], Assignment]:
        """Write the attempt's marker and return the function from (rank, store host, store port) to assignment.

        Args:
            job: as it is now.
            generation: which group of the attempt the assignments are for. After the first, they say what is on record already.
        Raises:
            FileNotFoundError: the checkpoint that the spec names is gone.
            OSError: the storage cannot be written.
        """
        resume = await self._resume(job)
        marker = self._marker(job)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(job.id)
        cursors = await self._store.events.cursors(job.id, job.attempt)
        reported = await self._store.metrics.last_steps(job.id) if generation > 1 else {}

        def assignment(rank: int, store_host: str, store_port: int) -> Assignment:
            return Assignment(
                job_id=job.id,
                attempt=job.attempt,
                fence=job.fence,
                generation=generation,
                rank=rank,
                world_size=job.world_size,
                spec=job.spec,
                storage=self._storage,
                marker=str(marker.relative_to(self._storage)),
                begins=job.state is State.STARTING,
                resume=resume,
                store_host=store_host,
                store_port=store_port,
                after_seq=cursors.get(rank, 0),
                reported=reported,
            )

        return assignment

    async def discard(self, job: Job) -> None:
        """Clear up after an attempt whose ranks are gone: its marker, and what it published without having been heard."""
        self._marker(job).unlink(missing_ok=True)
        await align(self._store, self._storage, job.id)

    def _marker(self, job: Job) -> Path:
        return self._storage / MARKERS / f"{job.id}-{job.attempt}"

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
