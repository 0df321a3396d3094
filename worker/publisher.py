"""The background thread that writes a job's checkpoints, on rank 0. At most one is in flight; the next waits.

Owns the thread, the announcements (`checkpoint`, `pruned`, `warning`), the retention, and the patience with the last checkpoint. How a
snapshot is taken is told by whoever submits it.
"""

import threading
import time
from collections.abc import Callable

from worker.checkpoint import Snapshot, publish
from worker.contract.events import EventType
from worker.contract.spec import CheckpointSpec
from worker.errors import CheckpointWriteError, WorkerError, describe
from worker.progress import EventBuffer
from worker.retention import steps_to_prune
from worker.storage.storage import Storage

LAST_PATIENCE_S = 120.0
"""How long a job that has done all its steps tries to write its last checkpoint before it fails."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0


class Publisher:
    """Publishes snapshots one at a time, in the order given.

    A write that fails costs one checkpoint: it becomes a `warning`, the job goes on, and the one before stays. Only the last one is tried
    again. A stale fence ends the attempt: it is raised at the next `submit` or `finish`.
    """

    def __init__(self, storage: Storage, job_id: str, spec: CheckpointSpec, events: EventBuffer) -> None:
        self._storage, self._job_id, self._spec, self._events = storage, job_id, spec, events
        self._thread: threading.Thread | None = None
        self._newest: tuple[int, Callable[[], Snapshot]] | None = None
        self._failure: Exception | None = None
        try:
            storage.sweep(job_id)
        except OSError as error:
            self._warn("leftovers_not_deleted", str(error))

    def submit(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Begin to publish a snapshot, after waiting for the one before. Raises what makes going on pointless.

        Args:
            step: whose state it is.
            take: returns it; called in the thread, each time that it is tried. Raises CheckpointWriteError where there is none.
        """
        self.wait()
        if self._failure is not None and not isinstance(self._failure, CheckpointWriteError):
            raise self._failure
        self._start(step, take)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is in flight, or for `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = self._thread if self._thread.is_alive() else None

    def is_idle(self, timeout_s: float) -> bool:
        """Return whether nothing is in flight, after waiting for that for at most `timeout_s`."""
        self.wait(timeout_s)
        return self._thread is None

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self, stop: threading.Event | None = None) -> None:
        """Wait for the last checkpoint; write it again for `LAST_PATIENCE_S` where it cannot be written, and until `stop` is set.

        Raises:
            CheckpointWriteError: it could not: a job that has no final checkpoint has not succeeded.
            StaleFenceError: a later attempt has published.
        """
        stop = stop or threading.Event()
        deadline, pause_s = time.monotonic() + LAST_PATIENCE_S, FIRST_PAUSE_S
        self.wait()
        while isinstance(self._failure, CheckpointWriteError) and self._newest is not None:
            if time.monotonic() + pause_s > deadline or stop.wait(pause_s):
                break
            self._start(*self._newest)
            self.wait()
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if self._failure is not None:
            raise self._failure

    def _start(self, step: int, take: Callable[[], Snapshot]) -> None:
        self._failure, self._newest = None, (step, take)
        # Not a daemon: a process that ends normally finishes its write.
        self._thread = threading.Thread(target=self._run, args=(step, take), name="checkpoint")
        self._thread.start()

    def _run(self, step: int, take: Callable[[], Snapshot]) -> None:
        try:
            manifest = publish(self._storage, take())
            self._events.emit(EventType.CHECKPOINT, manifest.model_dump(mode="json"))
            self._prune()
        except Exception as error:  # noqa: BLE001 - the outermost loop of a thread: recorded, and raised by the training thread
            known = error if isinstance(error, WorkerError) else CheckpointWriteError(f"the checkpoint was not written: {describe(error)}")
            self._failure = known
            if isinstance(known, CheckpointWriteError):
                self._warn("checkpoint_not_written", str(known), step=step)

    def _prune(self) -> None:
        """Delete what the rule does not keep. A checkpoint that cannot be deleted is a warning, no failure."""
        pruned = []
        try:
            for step in steps_to_prune(self._storage.published(self._job_id), self._spec, self._storage.pins(self._job_id)):
                # Looks for a pin once more: one may have come since.
                pruned += [step] if self._storage.remove(self._job_id, step, unless_pinned=True) else []
        except OSError as error:
            self._warn("checkpoint_not_deleted", str(error))
        if pruned:
            self._events.emit(EventType.PRUNED, {"steps": pruned})

    def _warn(self, code: str, message: str, **more: int) -> None:
        self._events.emit(EventType.WARNING, {"code": code, "message": message, **more})
