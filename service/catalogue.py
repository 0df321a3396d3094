"""Brings the catalogue of checkpoints in line with the storage, which is the truth.

A rank publishes first and announces afterwards; one that dies in between has published what nobody heard of, or deleted what is
still listed. So after a gang is gone, and before an attempt starts from a checkpoint, the storage is asked. And when a controller starts,
it is asked about every job: the database may be an older one, put back from a backup.
"""

import asyncio

import structlog

from service.states import TERMINAL
from service.store.store import Store
from worker.storage.storage import Storage

log = structlog.get_logger()


async def align(store: Store, storage: Storage, job_id: str) -> None:
    """List exactly the checkpoints that are there. Only for a job whose ranks are all gone: nobody else may be writing.

    Args:
        store: holds the catalogue.
        storage: where the checkpoints are.
        job_id: the job.
    """
    published = await asyncio.to_thread(storage.published, job_id)
    found = [published[step] for step in sorted(published, reverse=True)]
    listed = [checkpoint.manifest for checkpoint in await store.checkpoints.of(job_id)]
    if found != listed:
        log.info("catalogue_aligned", job=job_id, found=[one.step for one in found], listed=[one.step for one in listed])
        await store.checkpoints.replace(job_id, found)


async def rebuild(store: Store, storage: Storage) -> None:
    """Align every job that has ended with the storage, and sweep away what its writers left behind. Others are aligned by their attempts.

    Manifests are read only where the steps differ. A job that is in the storage alone is left as it is, and named in the log. An error of
    the storage ends it with a warning: the catalogue stays as it is.
    """
    try:
        for job_id in await asyncio.to_thread(storage.jobs):
            job = await store.jobs.get(job_id)
            if job is None:
                log.warning("checkpoints_of_unknown_job", job=job_id)
            elif job.state in TERMINAL:
                await asyncio.to_thread(storage.sweep, job_id)
                steps = await asyncio.to_thread(storage.steps, job_id)
                if steps != {checkpoint.step for checkpoint in await store.checkpoints.of(job_id)}:
                    await align(store, storage, job_id)
    except OSError as error:
        log.warning("catalogue_not_rebuilt", error=str(error))
