"""The Ray actor: a mailbox around one rank, and which process it is. Importing this module loads neither torch nor Ray."""

import os
from typing import Any

from worker.family import found_family
from worker.mailbox import Mailbox


class RankActor:
    """One process of a gang. Methods run concurrently, so each is short or waits only for events."""

    def __init__(self, place: int) -> None:
        import ray

        self._created = found_family()
        self._place = place
        self._node_ip = ray.util.get_node_ip_address()
        self._mailbox = Mailbox(self._node_ip)

    def identify(self) -> dict[str, Any]:
        """Say which process this is, for those who must know when it is gone, and how far it has been told what to do."""
        import ray

        return {
            "place": self._place,
            "pid": os.getpid(),
            "created": self._created,
            "node_id": ray.get_runtime_context().get_node_id(),
            "node_ip": self._node_ip,
            "generation": self._mailbox.generation,
        }

    def host_store(self, generation: int) -> int:
        """See Mailbox."""
        return self._mailbox.host_store(generation)

    def prepare(self, preview: dict[str, Any], timeout_s: float) -> None:
        """See Mailbox."""
        self._mailbox.prepare(preview, timeout_s)

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
