"""Another number of ranks for a gang that trains: new processes are started beside it, or some of its own are ended; then all meet anew.

Training goes on, and is recorded, until the new processes are there. A controller killed at any moment leaves a gang that the next one
finds torn, and mends as it does after a loss. When a resize is due is decided in `service.watch`, how large in `service.scheduling`.
"""

import asyncio
import threading
from collections.abc import Sequence

import structlog

from service.assignments import Assignments
from service.cluster import ClusterError, RunningGang
from service.places import free_places
from service.retrying import Cancel, Resize, Verdict, Wait, Why
from service.store.records import Job
from service.store.store import Store
from service.watch import Watch
from worker.contract import JobSpec

RETRY_S = 1.0
"""Pause after a resize that was broken off."""
_WORDS = {Why.ASKED: "as asked", Why.ROOM_RETURNED: "there is room", Why.NODE_LOST: "the room of the others is gone"}

log = structlog.get_logger()


class Resizer:
    """Resizes the gang of one attempt."""

    def __init__(self, store: Store, assignments: Assignments, watch: Watch, job: Job) -> None:
        self._store = store
        self._assignments = assignments
        self._watch = watch
        self._job = job

    async def resize(self, gang: RunningGang, wish: Resize) -> Verdict | None:
        """Bring a gang to another size; return what was decided meanwhile, None where it is to be watched again."""
        if wish.workers > len(gang.places):
            return await self._grow(gang, wish)
        # The highest places go, so that rank 0, which writes, stays.
        if not await self.regroup(gang, gang.places[: wish.workers], wish.why):
            await asyncio.sleep(RETRY_S)
        return None

    async def _grow(self, gang: RunningGang, wish: Resize) -> Verdict | None:
        is_given_up = threading.Event()
        places = free_places(gang.places, wish.workers - len(gang.places))
        enlisting = asyncio.create_task(self._enlist(gang, places, is_given_up))
        try:
            verdict = await self._watch.until_decided(gang, meanwhile=enlisting)
        except BaseException:
            enlisting.cancel()
            raise
        finally:
            is_given_up.set()
        try:
            await enlisting
        except (ClusterError, OSError) as error:
            log.warning("gang_not_enlarged", job=self._job.id, workers=wish.workers, error=str(error))
        else:
            if isinstance(verdict, Wait) and await self.regroup(gang, [*gang.places, *places], wish.why):
                return None
        if isinstance(verdict, Cancel):
            return verdict  # the new processes are ended with the others, not before them
        await self._leave_as_it_is(gang)
        return None if isinstance(verdict, Wait) else verdict

    async def _enlist(self, gang: RunningGang, places: Sequence[int], is_given_up: threading.Event) -> None:
        """Start processes beside a gang and have them get ready for the group that is to be: the others wait for the meeting alone."""
        job = await self._store.jobs.get(self._job.id) or self._job
        preview = await self._assignments.prepare(job, [*gang.places, *places], gang.generation + 1)
        await gang.enlist(places, preview, is_given_up.is_set)

    async def regroup(self, gang: RunningGang, places: Sequence[int], why: Why) -> bool:
        """Have a gang consist of these places, and all ranks meet anew; what fails on the way, the watch finds, and has it mended.

        Returns:
            False where nothing was begun: the job is in no state for it.
        """
        job = await self._store.jobs.get(self._job.id) or self._job
        generation = gang.generation + 1
        data = resized(job.spec, job.progress.step, len(gang.places), len(places), why)
        # Stored before anything is done, so that whoever comes after a killed controller knows how many ranks there are to be.
        if not await self._store.resizes.begin(job.id, self._job.fence, why, {"generation": generation, **data}):
            return False
        log.info("gang_resized", job=job.id, why=why.value, workers=len(places), step=job.progress.step)
        try:
            await gang.regroup(places)
            assignment = await self._assignments.prepare(job, gang.places, generation)
            await self._watch.unless_given_up(gang.assign(generation, assignment))
        except (ClusterError, OSError) as error:
            log.warning("resize_interrupted", job=job.id, error=str(error))
            await asyncio.sleep(RETRY_S)
        return True

    async def _leave_as_it_is(self, gang: RunningGang) -> None:
        """End the processes that were started beside the gang, and let the scheduler say again what is to be done."""
        self._watch.resize = None
        await self._store.resizes.withdraw(self._job.id)
        try:
            await gang.regroup(gang.places)
        except ClusterError as error:  # it is torn, then
            log.warning("processes_left_over", job=self._job.id, error=str(error))


def resized(spec: JobSpec, step: int, old: int, new: int, why: Why) -> dict[str, object]:
    """Return the data of the event of a resize; every rank's share of the global batch differs by at most one sample.

    Args:
        spec: of the job.
        step: the last on record.
        old: ranks before.
        new: ranks from now on.
        why: the reason.
    """
    least, extra = divmod(spec.batch_size, new)
    most = least + (extra > 0)
    share = f"{most}" if most == least else f"{least} or {most}"
    return {
        "step": step,
        "old_world_size": old,
        "new_world_size": new,
        "samples_per_rank": [most, least],
        "message": f"{new} workers instead of {old}, with {share} samples of a step each: {_WORDS[why]}",
    }
