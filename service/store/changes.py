"""Who waits for what: wakes readers of a job's events, and the reconciler, in this process. Stores nothing that matters."""

import asyncio
from collections.abc import Callable

from service.store.session import StateLeft


class Changes:
    """Told after every commit. One event loop; not for threads."""

    def __init__(self) -> None:
        self.jobs = asyncio.Event()
        """Set when a job was submitted, cancelled or changed in priority. Whoever waits clears it before looking."""
        self.tokens_edition = 0
        """Grows with every change of a token in this process."""
        self.on_state_left: Callable[[StateLeft], None] | None = None
        """Called for every state that a job has left by a commit of this process."""
        self.on_catalogued: Callable[[str], None] | None = None
        """Called for every job of which a commit of this process has listed checkpoints."""
        self._newest: dict[str, int] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def publish(self, job_id: str, seq: int) -> None:
        """Say that a job now has events up to `seq`."""
        self._newest[job_id] = max(seq, self._newest.get(job_id, 0))
        for waiter in self._waiting.get(job_id, ()):
            waiter.set()

    def tell(self, left: StateLeft) -> None:
        """Say that a job has left a state."""
        if self.on_state_left is not None:
            self.on_state_left(left)

    def tell_catalogued(self, job_id: str) -> None:
        """Say that checkpoints of a job were listed."""
        if self.on_catalogued is not None:
            self.on_catalogued(job_id)

    def forget(self, job_id: str) -> None:
        """Wake the readers of a deleted job and remember nothing of it."""
        self._newest.pop(job_id, None)
        for waiter in self._waiting.get(job_id, ()):
            waiter.set()

    def wake_all(self) -> None:
        """Wake everybody: something may have happened that was not heard."""
        self.jobs.set()
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.set()

    async def wait(self, job_id: str, after_seq: int, timeout_s: float) -> bool:
        """Wait until the job has an event newer than `after_seq`.

        Args:
            job_id: the job.
            after_seq: what the caller has read from the store already; read first, then wait, and nothing is missed.
            timeout_s: longest wait.
        Returns:
            Whether something happened; after False the caller may simply wait again.
        """
        if self._newest.get(job_id, 0) > after_seq:
            return True
        waiter = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.wait()
        except TimeoutError:
            return False
        finally:
            waiters = self._waiting[job_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiting[job_id]
        return True
