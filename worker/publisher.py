"""The background thread that writes a job's checkpoints, on rank 0. At most one is in flight; the next waits.

Owns the thread, the announcements (`checkpoint`, `pruned`, `warning`) and the retention. Takes snapshots that are copies already.
"""

import threading
from pathlib import Path

from worker.checkpoint import Snapshot, publish, published, remove, remove_leftovers
from worker.contract.events import EventType
from worker.contract.manifest import checkpoint_name
from worker.contract.spec import CheckpointSpec
from worker.errors import CheckpointWriteError, WorkerError
from worker.progress import EventBuffer
from worker.retention import steps_to_prune


class Publisher:
    """Publishes snapshots one at a time, in the order given.

    A write that fails costs one checkpoint: it becomes a `warning`, the job goes on, and the one before stays. A stale fence ends the
    attempt: it is raised at the next `submit` or `finish`.
    """

    def __init__(self, parent: Path, spec: CheckpointSpec, events: EventBuffer) -> None:
        self._parent, self._spec, self._events = parent, spec, events
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        remove_leftovers(parent)

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to publish a snapshot, after waiting for the one before. Raises what makes going on pointless."""
        self.wait()
        if self._failure is not None and not isinstance(self._failure, CheckpointWriteError):
            raise self._failure
        self._failure = None
        # Not a daemon: a process that ends normally finishes its write.
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is in flight, or for `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = self._thread if self._thread.is_alive() else None

    def is_idle(self, timeout_s: float) -> bool:
        """Return whether nothing is in flight, after waiting for that for at most `timeout_s`."""
        self.wait(timeout_s)
        return self._thread is None

    def finish(self) -> None:
        """Wait for the last checkpoint. Raises what went wrong with it: a job that has no final checkpoint has not succeeded."""
        self.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self, snapshot: Snapshot) -> None:
        try:
            manifest = publish(self._parent, snapshot)
            self._events.emit(EventType.CHECKPOINT, manifest.model_dump(mode="json"))
            self._prune()
        except CheckpointWriteError as error:
            self._failure = error
            self._events.emit(EventType.WARNING, {"code": "checkpoint_not_written", "message": str(error), "step": snapshot.manifest.step})
        except Exception as error:  # noqa: BLE001 - the outermost loop of a thread: recorded, and raised by the training thread
            self._failure = error if isinstance(error, WorkerError) else CheckpointWriteError(f"the checkpoint was not written: {error!r}")

    def _prune(self) -> None:
        """Delete what the rule does not keep. A checkpoint that cannot be deleted is a warning, no failure."""
        try:
            steps = steps_to_prune(published(self._parent), self._spec)
            for step in steps:
                remove(self._parent / checkpoint_name(step))
        except OSError as error:
            self._events.emit(EventType.WARNING, {"code": "checkpoint_not_deleted", "message": str(error)})
            return
        if steps:
            self._events.emit(EventType.PRUNED, {"steps": steps})
