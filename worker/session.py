"""One rank's part in one attempt of a job, from the first assignment to the last step. Knows no Ray.

Owns what happens when a group of ranks breaks: the rank leaves it, keeps what it holds, says that it is parked, and waits for the
assignment of the next group. What is done inside a group is `worker.course`.
"""

import traceback
from contextlib import ExitStack

import torch

import syncbn
from worker.bundle import importable
from worker.compilation import patience
from worker.contract.assignment import Assignment
from worker.contract.events import EventType
from worker.course import Course, Outcome
from worker.errors import GangStartError, PeerLostError, StorageNotSharedError, WorkerError, classify
from worker.holding import Holding
from worker.meeting import connect_store
from worker.orders import Orders
from worker.progress import EventBuffer
from worker.publisher import Publisher
from worker.pulse import Pulse
from worker.ranks import device_for, join, leave
from worker.settings import export_rank, read_settings
from worker.storage.opening import open_storage
from worker.storage.profiles import StorageConfigError
from worker.storage.storage import Storage

LAST_WRITE_TIMEOUT_S = 60.0
"""How long a failed or stopped rank 0 waits for the checkpoint in flight, so that it is announced."""


def run_rank(orders: Orders, events: EventBuffer, pulse: Pulse | None = None) -> Outcome:
    """Train one rank's part of a job, from meeting the other ranks to leaving them, through as many groups as it takes.

    Args:
        orders: the first assignment, and whatever the controller says later.
        events: where phases, and on rank 0 metrics, checkpoints and warnings go. Not the `end` event: the caller knows the end.
        pulse: told of every step, for those who look whether the rank moves on.
    Returns:
        succeeded, paused, or stopped.
    Raises:
        WorkerError: of any kind but the loss of peers, after which it waits for the next assignment for `park_timeout_s`. The group is
            left at once, so that the peers see it go.
    """
    rank = _Rank(orders, events, pulse or Pulse())
    try:
        return rank.run()
    finally:
        if rank.holding is not None:
            rank.holding.trainer.close()
        if rank.publisher is not None:
            rank.publisher.wait(LAST_WRITE_TIMEOUT_S)
        rank.code.close()


class _Rank:
    """What outlives the groups."""

    def __init__(self, orders: Orders, events: EventBuffer, pulse: Pulse) -> None:
        self.orders, self.events, self.pulse = orders, events, pulse
        assignment = orders.await_newer(0, 0) or orders.preview
        assert assignment is not None, "run_rank comes after the first assignment, or a preview of it"
        self.assignment = assignment
        self.holding: Holding | None = None
        self.publisher: Publisher | None = None
        """Of rank 0. Another rank becomes rank 0 only when the one before is gone."""
        self.code = ExitStack()
        """Keeps uploaded code importable."""

    def run(self) -> Outcome:
        """Go from group to group until the training has ended."""
        while True:
            try:
                return self._in_one_group() if self._is_told() else "stopped"
            except BaseException as error:
                self._break_off(error)
                if not isinstance(error, Exception):
                    raise
                known = classify(error)
                if self.orders.stop.is_set() and isinstance(known, PeerLostError | GangStartError):
                    # Who is asked to stop while its peers are ended does as it was asked.
                    return "stopped"
                if not self._is_survivable(known):
                    raise known from error
                holding, reason = self.holding, str(known)
                del known
            assert holding is not None, "only who holds something survives"
            following = self._park(holding, reason)
            if following is None:
                return "stopped"
            self.assignment = following

    def _is_told(self) -> bool:
        """Return whether there is a group to go to; where it is only to be, get ready for it and wait. False: this rank is to stop."""
        preview, self.orders.preview = self.orders.preview, None
        if self.assignment is preview:
            self._hold(preview)
            self.orders.ready.set()
            following = self._await_next(0, "was to join others")
            if following is None:
                return False
            self.assignment = following
        if self.holding is None or preview is not None:
            self.events.emit(EventType.STATE, {"phase": "starting", "generation": self.assignment.generation, "step": 0})
        return True

    def _in_one_group(self) -> Outcome:
        assignment = self.assignment
        holding = self._hold(assignment)
        holding.reporter.generation = assignment.generation
        store = self.orders.store_of(assignment.generation) or connect_store(assignment.store_host, assignment.store_port)
        ranks = join(
            store,
            assignment.rank,
            assignment.world_size,
            holding.device,
            settings=patience(read_settings(), assignment.spec),
            is_superseded=lambda: self.orders.is_superseded(assignment.generation),
        )
        with self.orders.interrupting(assignment.generation, ranks.interrupt):
            size = assignment.spec.norm.group_size
            group = None if size == "all" else syncbn.norm_groups(size, prefer_node_local=False)
            decision = holding.join(ranks, group)
            if decision.is_reporter_new and assignment.reported is not None:
                holding.reporter.repeat(assignment.reported)
            outcome = Course(holding, assignment, ranks, publisher=self.publisher, orders=self.orders, pulse=self.pulse).run(
                is_saved=decision.is_saved
            )
        holding.leave()
        del group, ranks, store
        leave()
        return outcome

    def _hold(self, assignment: Assignment) -> Holding:
        """Return what this rank holds, made from the assignment the first time. Done before the ranks meet: who is new is waited for."""
        spec = assignment.spec
        export_rank(assignment.rank, assignment.world_size, assignment.store_host, assignment.store_port)
        if self.holding is None:
            torch.set_num_threads(max(1, int(spec.resources.cpus_per_worker)))
            storage = _shared_storage(assignment)
            self.code.enter_context(importable(storage, assignment.code_sha256))
            self.holding = Holding(assignment, device_for(spec.resources.gpus_per_worker), storage, self.events)
        if assignment.rank == 0 and self.publisher is None:
            self.publisher = Publisher(self.holding.storage, assignment.job_id, spec.checkpoint, self.events)
        return self.holding

    def _break_off(self, error: BaseException) -> None:
        """Leave the group so that the peers see it at once, and keep what is held."""
        _forget_frames(error)
        if self.holding is not None:
            self.holding.leave()
        leave(has_failed=True)

    def _is_survivable(self, error: WorkerError) -> bool:
        """Return whether a new group may help: peers are gone, or did not come and are replaced already."""
        if self.holding is None:
            return False
        return isinstance(error, PeerLostError) or (isinstance(error, GangStartError) and self.assignment.generation > 1)

    def _park(self, holding: Holding, reason: str) -> Assignment | None:
        """Say that this rank waits, and wait for the next assignment; None when it is to stop."""
        holding.reporter.phase("parked", holding.step, reason)
        return self._await_next(self.assignment.generation, f"lost its peers at step {holding.step}", f" ({reason})")

    def _await_next(self, generation: int, what: str, why: str = "") -> Assignment | None:
        """Wait for the assignment after that of a generation; None when this rank is to stop. `what` has happened to it, for people."""
        timeout_s = read_settings().park_timeout_s
        following = self.orders.await_newer(generation, timeout_s)
        if following is None and not self.orders.stop.is_set():
            raise PeerLostError(
                f"rank {self.assignment.rank} {what} and was told nothing by the controller for {timeout_s:g} s; expected the assignment of"
                f" generation {generation + 1}; see whether the controller runs{why}"
            )
        return following


def _shared_storage(assignment: Assignment) -> Storage:
    """Open the storage, and see by the marker that it is the controller's."""
    try:
        storage = open_storage(assignment.storage)
        is_shared = storage.is_marked(assignment.marker)
    except (OSError, StorageConfigError) as error:
        raise StorageNotSharedError(
            f"rank {assignment.rank} cannot use the storage {assignment.storage}: {error}; set this node up like the controller's"
        ) from error
    if not is_shared:
        raise StorageNotSharedError(
            f"rank {assignment.rank} does not see {assignment.marker} in {assignment.storage}, which the controller wrote: the storage path"
            " must be the same shared directory on every node and for the controller; mount it on this node, or use one node"
        )
    return storage


def _forget_frames(error: BaseException) -> None:
    """Clear the local variables of all frames that the error holds: they refer to the process group, which must be gone at once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            todo += [current.__cause__, current.__context__]
