"""The mailbox around one rank: takes assignments, trains in a thread, answers drains, passes on pause and stop. Knows no Ray.

Owns the training thread and the last word (`end`) of the rank. Loads torch only where it is needed, in the process of the rank;
importing this module does not.
"""

import contextlib
import gc
import threading
from typing import Any

from worker.contract.assignment import Assignment
from worker.contract.events import EventType
from worker.orders import Orders
from worker.output import captured_output
from worker.progress import EventBuffer
from worker.pulse import Pulse
from worker.watchdog import interpreter_watched

MAX_POLL_S = 60.0


class Mailbox:
    """One rank of a gang. Methods run concurrently, so each is short or waits only for events."""

    def __init__(self, node_ip: str) -> None:
        self._node_ip = node_ip
        self._events = EventBuffer()
        self._orders = Orders()
        self._pulse = Pulse()
        self._thread: threading.Thread | None = None
        self._fence = 0
        self._starting = threading.Lock()
        # The other ranks import torch while one does, and not one after the other.
        self._loading = threading.Thread(target=load_torch, name="load", daemon=True)
        self._loading.start()

    @property
    def generation(self) -> int:
        """That of the newest assignment; 0 before the first."""
        return self._orders.generation

    def host_store(self, generation: int) -> int:
        """Serve the store at which the ranks of a generation meet, on this node's address; return its port."""
        self._loading.join()  # two threads in the import of torch.distributed can end the process
        from worker.meeting import host_store

        with self._starting:
            store = self._orders.store_of(generation) or self._orders.serve(generation, host_store(self._node_ip))
            return int(store.port)

    def assign(self, assignment: dict[str, Any]) -> None:
        """Begin to train, or go on in a new group; returns at once. One that is not newer is ignored: it may come twice."""
        with self._starting:
            parsed = Assignment.model_validate(assignment)
            if self._orders.assign(parsed) and self._thread is None:
                self._begin(parsed)

    def prepare(self, preview: dict[str, Any], timeout_s: float) -> None:
        """Build data and model for a group that is to be, so that its other ranks need not wait for that.

        Returns once that is done, or has failed, which is the rank's last word; or after `timeout_s`, and it goes on.
        """
        with self._starting:
            if self._thread is None:
                self._orders.preview = Assignment.model_validate(preview)
                self._begin(self._orders.preview)
        self._orders.ready.wait(timeout_s)

    def _begin(self, first: Assignment) -> None:
        self._fence = first.fence
        self._events.begin_after(first.after_seq)
        self._thread = threading.Thread(target=self._train, args=(first.rank, first.world_size), name=f"rank-{first.rank}", daemon=True)
        self._thread.start()

    def drain(self, after_seq: int, timeout_s: float) -> dict[str, Any]:
        """Return a Drain, as data, but for the rank."""
        events, is_ended = self._events.drain(after_seq, min(timeout_s, MAX_POLL_S))
        standing = self._events.standing
        return {
            "fence": self._fence,
            "generation": standing.get("generation", 0),
            "phase": standing.get("phase", ""),
            "reading": self._pulse.reading(),
            "events": [event.model_dump(mode="json") for event in events],
            "is_ended": is_ended,
        }

    def pause(self) -> None:
        """Ask the training to save after the present step, and to end."""
        self._orders.ask_to_pause()

    def stop(self) -> None:
        """Ask the training to stop at the next step."""
        self._orders.ask_to_stop()

    def _train(self, rank: int, world_size: int) -> None:
        """Run to the end and say how it ended. The outermost loop of the rank: every exception becomes data here."""
        self._loading.join()
        from worker.errors import to_failure
        from worker.meeting import bind_interface
        from worker.session import run_rank

        # Whoever has peers is missed by them, and may be stopped for a while and continued.
        watched = interpreter_watched() if world_size == 1 else contextlib.nullcontext()
        with captured_output(self._events), watched:
            try:
                bind_interface(self._node_ip)
                outcome = run_rank(self._orders, self._events, self._pulse)
                ending: dict[str, Any] = {"outcome": outcome, "failure": None}
            except BaseException as error:  # noqa: BLE001 - recorded as the rank's last word
                ending = {"outcome": "failed", "failure": to_failure(error, rank).model_dump(mode="json")}
        self._events.emit(EventType.END, ending)
        self._orders.ready.set()


def load_torch() -> None:
    """Import what training needs. An error comes up again where it is needed, and is reported there.

    Python's garbage collector would look again and again through all that imports make, a quarter of their time, and find nothing. What is
    there by their end stays, so that it need not be looked through later either.
    """
    gc.disable()
    try:
        with contextlib.suppress(Exception):
            import worker.session  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
