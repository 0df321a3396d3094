"""Brings the catalogue of checkpoints in line with the storage, which is the truth.

A rank publishes first and announces afterwards; one that dies in between has published what nobody heard of, or deleted what is
still listed. So after a gang is gone, and before an attempt starts from a checkpoint, the storage is asked.
"""

import asyncio
from pathlib import Path

import structlog

from service.artifacts import MANIFEST_NAME
from service.store.store import Store
from worker.contract import Manifest, checkpoint_name, checkpoints_directory

log = structlog.get_logger()


async def align(store: Store, root: Path, job_id: str) -> None:
    """List exactly the checkpoints that are there. Only for a job whose ranks are all gone: nobody else may be writing.

    Args:
        store: holds the catalogue.
        root: the storage root.
        job_id: the job.
    """
    found = await asyncio.to_thread(stored, root, job_id)
    listed = [checkpoint.manifest for checkpoint in await store.checkpoints.of(job_id)]
    if found != listed:
        log.info("catalogue_aligned", job=job_id, found=[one.step for one in found], listed=[one.step for one in listed])
        await store.checkpoints.replace(job_id, found)


def stored(root: Path, job_id: str) -> list[Manifest]:
    """Return the manifests of a job's checkpoints in the storage, newest first; what has no manifest of its own name is none."""
    found = []
    for directory in (root / checkpoints_directory(job_id)).glob("step-*"):
        try:
            manifest = Manifest.model_validate_json((directory / MANIFEST_NAME).read_bytes())
        except (OSError, ValueError):
            continue
        if manifest.job_id == job_id and checkpoint_name(manifest.step) == directory.name:
            found.append(manifest)
    return sorted(found, key=lambda manifest: -manifest.step)
