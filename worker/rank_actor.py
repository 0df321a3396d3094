"""The Ray actor: a mailbox around one rank. Takes an assignment, trains in a thread, answers drains, passes on stop.

Owns the training thread and the last word (`end`) of the rank. Loads torch only inside the actor's process, in `_train`,
`host_store` and `_load_torch`; importing this module loads neither torch nor Ray.
"""

import contextlib
import os
import threading
from typing import Any

from worker.contract.assignment import Assignment
from worker.contract.events import EventType
from worker.output import captured_output
from worker.progress import EventBuffer

MAX_POLL_S = 60.0


class RankActor:
    """One rank of a gang. Methods run concurrently, so each is short or waits only for events."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._events = EventBuffer()
        self._stop = threading.Event()
        self._store: Any = None
        self._thread: threading.Thread | None = None
        self._fence = 0
        self._starting = threading.Lock()
        # The other ranks import torch while rank 0 does, and not one after the other.
        threading.Thread(target=_load_torch, name="load", daemon=True).start()

    def identify(self) -> dict[str, Any]:
        """Say which process this is, for those who must know when it is gone."""
        import psutil
        import ray

        return {
            "pid": os.getpid(),
            "created": psutil.Process().create_time(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "node_ip": ray.util.get_node_ip_address(),
            "is_started": self._thread is not None,
        }

    def host_store(self) -> int:
        """Serve the store at which the ranks meet, on this node's address; return its port. Called on rank 0 only."""
        import ray

        from worker.ranks import host_store

        with self._starting:
            if self._store is None:
                self._store = host_store(ray.util.get_node_ip_address())
            return int(self._store.port)

    def start(self, assignment: dict[str, Any]) -> None:
        """Begin to train; returns at once. A second call is ignored: the first may have been answered into the void."""
        with self._starting:
            if self._thread is not None:
                return
            parsed = Assignment.model_validate(assignment)
            self._fence = parsed.fence
            self._thread = threading.Thread(target=self._train, args=(parsed,), name=f"rank-{self._rank}", daemon=True)
            self._thread.start()

    def drain(self, after_seq: int, timeout_s: float) -> dict[str, Any]:
        """Return a Drain, as data."""
        events, is_ended = self._events.drain(after_seq, min(timeout_s, MAX_POLL_S))
        return {
            "rank": self._rank,
            "fence": self._fence,
            "events": [event.model_dump(mode="json") for event in events],
            "is_ended": is_ended,
        }

    def stop(self) -> None:
        """Ask the training to stop at the next step."""
        self._stop.set()

    def _train(self, assignment: Assignment) -> None:
        """Run the assignment and say how it ended. The outermost loop of the rank: every exception becomes data here."""
        import ray

        from worker.errors import to_failure
        from worker.ranks import bind_interface
        from worker.session import run_rank

        with captured_output(self._events):
            try:
                bind_interface(ray.util.get_node_ip_address())
                outcome = run_rank(assignment, self._store, self._events, self._stop)
                ending: dict[str, Any] = {"outcome": outcome, "failure": None}
            except BaseException as error:  # noqa: BLE001 - recorded as the rank's last word
                ending = {"outcome": "failed", "failure": to_failure(error, self._rank).model_dump(mode="json")}
        self._events.emit(EventType.END, ending)


def _load_torch() -> None:
    """Import what training needs. An error comes up again where it is needed, and is reported there."""
    with contextlib.suppress(Exception):
        import worker.session  # noqa: F401
