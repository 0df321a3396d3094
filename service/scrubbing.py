"""Reads checkpoints through beside everything else, so that a download need not take digests and damage is found before it is needed.

First what was just listed, best and latest first, then everything once a day, the newest jobs first. One file at a time, for a small share
of the time. Not with a lower priority of the system's: a thread that waits for a processor may hold Python's lock, and requests with it.
What was verified is remembered in memory (`service.reading.Verified`), so a controller that starts begins anew; each of several does it for
itself. Object stores are left alone: they verify what they hold, and reading costs money there.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

import structlog

from service.artifacts import Artifacts
from service.errors import DamagedError, NotFoundError
from service.reading import MAX_TRUSTED, SETTLED_S, Verified, read_verified
from service.store.errors import DatabaseAwayError
from service.store.records import Checkpoint
from service.store.store import Store
from worker.storage.storage import Identity

SHARE: Final = 0.1
"""Of the time, at most, in which something is read or a digest is taken."""
AGAIN_S: Final = 86_400.0
"""Between two passes over everything. In each, what is still trusted is passed over."""
LOOK_S: Final = 60.0
"""How often it is looked whether damaged files are still there; and the rest after an error."""
MOST_FILES: Final = MAX_TRUSTED // 2
"""In one pass over everything: what is older is verified when it is sent."""
PAGE_JOBS: Final = 100

_Name = tuple[str, int, str]
"""Job id, step, name of the file."""

log = structlog.get_logger()


class NothingToTrustError(Exception):
    """The storage cannot say whether a file was written to."""


class Scrubber:
    """Verifies files in the background, and knows which are damaged."""

    def __init__(self, store: Store, artifacts: Artifacts, verified: Verified, rest: Callable[[float], float] | None = None) -> None:
        """Do nothing yet.

        Args:
            store: says which checkpoints there are, and which are new.
            artifacts: opens them.
            verified: remembers what was found right.
            rest: from how long something took to how long to rest afterwards, both in s; by default so that SHARE is kept.
        """
        self._store = store
        self._artifacts = artifacts
        self._verified = verified
        self._rest = rest or (lambda took_s: took_s * (1 / SHARE - 1))
        self._damaged: dict[_Name, Identity | None] = {}
        self._new: dict[str, None] = {}
        self._is_new = asyncio.Event()
        self.num_verified = 0
        """Files that were read and found right."""
        store.changes.on_catalogued = self._hear

    @property
    def num_damaged(self) -> int:
        """Files that are damaged now, as far as is known."""
        return len(self._damaged)

    def damaged_files(self, checkpoint: Checkpoint) -> list[str]:
        """Return which files of a checkpoint are known to be damaged."""
        return sorted(name for job_id, step, name in self._damaged if (job_id, step) == (checkpoint.job_id, checkpoint.step))

    async def run(self) -> None:
        """Verify again and again; end where the storage is an object store."""
        pass_at = time.monotonic()
        while True:
            try:
                if time.monotonic() >= pass_at:
                    await self.once()
                    pass_at = time.monotonic() + AGAIN_S
                await self._attend(pass_at)
            except NothingToTrustError:
                return
            except (DatabaseAwayError, OSError) as error:
                log.warning("scrubbing_given_up", error=str(error))
            except Exception:
                log.exception("scrubbing_failed")  # the outermost loop: a fault with one checkpoint must not end all passes
            else:
                continue
            await asyncio.sleep(LOOK_S)

    async def once(self) -> None:
        """Pass over everything, with what is new in between.

        Raises:
            NothingToTrustError: nothing here can be remembered.
            DatabaseAwayError: the database does not answer.
            OSError: the storage does not.
        """
        num_files, before = 0, None
        while job_ids := await self._store.checkpoints.jobs(before, PAGE_JOBS):
            for job_id in job_ids:
                async for checkpoint in self._checkpoints(job_id):
                    await self._take_new()
                    await self._verify(checkpoint)
                    num_files += len(checkpoint.manifest.files)
                if num_files >= MOST_FILES:
                    return
            before = job_ids[-1]

    def _hear(self, job_id: str) -> None:
        self._new[job_id] = None
        self._is_new.set()

    async def _attend(self, until: float) -> None:
        """Verify what is new as it comes, and look after what is damaged, until then."""
        while (left_s := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left_s, LOOK_S)):
                    await self._is_new.wait()
            except TimeoutError:
                await self._look_at_damaged()
            await self._take_new()

    async def _take_new(self) -> None:
        self._is_new.clear()
        while self._new:
            job_id = self._new.popitem()[0]  # the newest
            async for checkpoint in self._checkpoints(job_id):
                await self._verify(checkpoint)

    async def _look_at_damaged(self) -> None:
        for job_id, step, name in list(self._damaged):
            checkpoint = await self._store.checkpoints.get(job_id, step)
            if checkpoint is None:
                del self._damaged[job_id, step, name]
            else:
                await self._verify_file(checkpoint, name)

    async def _checkpoints(self, job_id: str) -> AsyncIterator[Checkpoint]:
        """Yield a job's checkpoints: best and latest first, then the newest."""
        began = time.monotonic()
        listed = await self._artifacts.of(job_id)
        await asyncio.sleep(self._rest(time.monotonic() - began))
        for one in sorted(listed, key=lambda one: not (one.is_best or one.is_latest)):
            yield one.checkpoint

    async def _verify(self, checkpoint: Checkpoint) -> None:
        for name in sorted(checkpoint.manifest.files):
            await self._verify_file(checkpoint, name)

    async def _verify_file(self, checkpoint: Checkpoint, name: str) -> None:
        key, identity = (checkpoint.job_id, checkpoint.step, name), None
        try:
            opened = await self._artifacts.open(checkpoint, name)
            try:
                identity = opened.file.identity()
                if identity is None:
                    raise NothingToTrustError
                if self._verified.holds(opened):
                    self._damaged.pop(key, None)
                    return
                if self._damaged.get(key) == identity:
                    return
                # What was written just now could be written to once more without showing it.
                await asyncio.sleep(min(max(identity.changed_at + SETTLED_S - time.time(), 0.0), SETTLED_S) + 0.01)
                began = time.monotonic()
                async with aclosing(read_verified(opened, self._verified)) as chunks:
                    async for _ in chunks:
                        await asyncio.sleep(self._rest(time.monotonic() - began))
                        began = time.monotonic()
            finally:
                opened.file.close()
        except NotFoundError:
            self._damaged.pop(key, None)  # pruned meanwhile
        except DamagedError as error:
            if key not in self._damaged:
                log.warning("checkpoint_damaged", job=checkpoint.job_id, step=checkpoint.step, file=name, error=str(error))
            self._damaged[key] = identity
        else:
            self._damaged.pop(key, None)
            self.num_verified += 1
