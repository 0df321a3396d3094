"""The Ray actor: a mailbox around one rank, and which process it is. Importing this module loads neither torch nor Ray."""

import ctypes
import os
from typing import Any

from worker.mailbox import Mailbox

_PR_SET_CHILD_SUBREAPER = 36


class RankActor:
    """One process of a gang. Methods run concurrently, so each is short or waits only for events."""

    def __init__(self, place: int) -> None:
        import ray

        adopt_orphans()
        self._place = place
        self._node_ip = ray.util.get_node_ip_address()
        self._mailbox = Mailbox(self._node_ip)

    def identify(self) -> dict[str, Any]:
        """Say which process this is, for those who must know when it is gone, and how far it has been told what to do."""
        import psutil
        import ray

        return {
            "place": self._place,
            "pid": os.getpid(),
            "created": psutil.Process().create_time(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "node_ip": self._node_ip,
            "generation": self._mailbox.generation,
        }

    def host_store(self, generation: int) -> int:
        """See Mailbox."""
        return self._mailbox.host_store(generation)

    def assign(self, assignment: dict[str, Any]) -> None:
        """See Mailbox."""
        self._mailbox.assign(assignment)

    def drain(self, after_seq: int, timeout_s: float) -> dict[str, Any]:
        """See Mailbox; a Drain, as data."""
        return {"rank": self._place, **self._mailbox.drain(after_seq, timeout_s)}

    def pause(self) -> None:
        """See Mailbox."""
        self._mailbox.pause()

    def stop(self) -> None:
        """See Mailbox."""
        self._mailbox.stop()


def adopt_orphans() -> None:
    """Have what user code forks stay a descendant of this process, even when it detaches itself, so that it is found and ended with it.

    Linux only; elsewhere a process that detaches itself is not found.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (AttributeError, OSError):
        return
