"""One rank's part in one attempt of a job, from the assignment to the last step. Knows no Ray.

Owns the order of things: meet, build, adopt state, train, evaluate, save, leave. What each of them is, is elsewhere.
"""

import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

import syncbn
from worker.bundle import importable
from worker.checkpoint import Loaded, Snapshot, load
from worker.compilation import patience
from worker.contract.assignment import Assignment
from worker.contract.events import EventType
from worker.contract.spec import RecalibrateSpec
from worker.data.assembly import taken_bad
from worker.data.bad import BadSamples
from worker.data.registry import build_data
from worker.data.split import Splits
from worker.errors import PeerLostError, StorageNotSharedError, TaskError, blame, classify
from worker.evaluation import StoppedError, evaluate
from worker.models.norms import training_norm
from worker.models.registry import build_model
from worker.progress import EventBuffer
from worker.publisher import Publisher
from worker.ranks import Ranks, connect_store, device_for, join, leave
from worker.reports import Reporter
from worker.sampler import Plan, even_batches
from worker.settings import read_settings
from worker.snapshot import draft_manifest
from worker.state import Buffers, capture, restore_model, restore_training, seed_generators
from worker.storage.opening import open_storage
from worker.storage.profiles import StorageConfigError
from worker.storage.storage import Storage
from worker.training import Precision, Trainer

Outcome = Literal["succeeded", "stopped"]

LAST_WRITE_TIMEOUT_S = 60.0
"""How long a failed or stopped rank 0 waits for the checkpoint in flight, so that it is announced."""


def run_rank(assignment: Assignment, store: Any, events: EventBuffer, stop: threading.Event) -> Outcome:
    """Train one rank's part of a job, from meeting the other ranks to leaving them.

    Args:
        assignment: what to train, where, and from which state.
        store: the store that this process serves, on rank 0; None elsewhere, where the one of rank 0 is connected to.
        events: where phases, and on rank 0 metrics, checkpoints and warnings go. Not the `end` event: the caller knows the end.
        stop: looked at between steps. All ranks stop after the same step when any is asked to.
    Returns:
        succeeded, or stopped.
    Raises:
        WorkerError: of any kind. The group is left at once, so that the peers fail too and at once, with PeerLostError.
    """
    publishers: list[Publisher] = []
    try:
        return _train_and_leave(assignment, store, events, stop, publishers)
    except BaseException as error:
        _forget_frames(error)
        leave(has_failed=True)
        if not isinstance(error, Exception):
            raise
        known = classify(error)
        if stop.is_set() and isinstance(known, PeerLostError):
            # Who is asked to stop while its peers are ended does as it was asked.
            return "stopped"
        raise known from error
    finally:
        for publisher in publishers:
            publisher.wait(LAST_WRITE_TIMEOUT_S)


def _train_and_leave(
    assignment: Assignment, store: Any, events: EventBuffer, stop: threading.Event, publishers: list[Publisher]
) -> Outcome:
    events.emit(EventType.STATE, {"phase": "starting"})
    spec = assignment.spec
    torch.set_num_threads(max(1, int(spec.resources.cpus_per_worker)))
    device = device_for(spec.resources.gpus_per_worker)
    store = store or connect_store(assignment.store_host, assignment.store_port)
    ranks = join(store, assignment.rank, assignment.world_size, device, patience(read_settings(), spec))
    # Whatever can fail on one rank alone comes after the ranks have met, so that the others need not wait for it in vain.
    storage = _shared_storage(assignment)
    with importable(storage, assignment.code_sha256):
        outcome = _run_session(assignment, ranks, storage, events, stop, publishers)
    leave()
    return outcome


def _run_session(  # noqa: PLR0917 - what one rank trains with
    assignment: Assignment, ranks: Ranks, storage: Storage, events: EventBuffer, stop: threading.Event, publishers: list[Publisher]
) -> Outcome:
    spec = assignment.spec
    seed_generators(spec.seed, assignment.rank, assignment.attempt)
    splits = build_data(spec.data, spec.seed)
    publisher = None
    if assignment.rank == 0:
        publisher = Publisher(storage, assignment.job_id, spec.checkpoint, events)
        publishers.append(publisher)
    session = _Session(assignment, ranks, splits, storage=storage, publisher=publisher, events=events, stop=stop)
    return session.run()


class _Session:
    """The parts of one rank while it trains."""

    def __init__(
        self,
        assignment: Assignment,
        ranks: Ranks,
        splits: Splits,
        *,
        storage: Storage,
        publisher: Publisher | None,
        events: EventBuffer,
        stop: threading.Event,
    ) -> None:
        spec = assignment.spec
        self.assignment, self.spec, self.ranks, self.splits, self.publisher, self.stop = assignment, spec, ranks, splits, publisher, stop
        self.storage, self.buffers = storage, Buffers()
        self.plan = Plan(splits.train.num_samples, spec.batch_size, spec.epochs, spec.steps)
        self.reporter = Reporter(events, self.plan, ranks.rank)
        self.group = None if spec.norm.group_size == "all" else syncbn.norm_groups(spec.norm.group_size, prefer_node_local=False)
        # Placed before anything is loaded: a checkpoint of double precision must not pass through the single precision of a fresh model.
        model = Precision(spec, ranks.device).place_model(
            build_model(spec.model, spec.norm, training_norm(spec.norm, self.group), splits.train, spec.seed, task=spec.task.name)
        )
        loaded = self._resumed_from()
        if loaded is not None:
            restore_model(model, loaded.model, str(assignment.resume))
        self.bad, self.bad_held_out = (BadSamples(spec.data.max_bad, self.reporter.warn) for _ in range(2))
        self.trainer = Trainer(spec, self.plan, splits.train, model, ranks, warn=self.reporter.warn)
        self.step = 0
        if loaded is not None and loaded.manifest.job_id == assignment.job_id:
            self.step = restore_training(self.trainer, loaded, ranks)

    def run(self) -> Outcome:
        """Train to the end, or until some rank is asked to stop."""
        try:
            self._train()
            self._finish()
        except StoppedError:
            return "stopped"
        finally:
            self.trainer.close()
        return "succeeded"

    def _train(self) -> None:
        """Train to the last step; save on the way, but not at the end."""
        self.reporter.phase("training")
        while self.step < self.plan.total_steps:
            result = self.trainer.step(self.step, self.stop)
            self.step += 1
            self.reporter.step(self.step, result)
            self.bad.settle((self.step - 1) // self.plan.steps_per_epoch, result.bad, result.num_bad)
            if result.is_stop_asked:
                raise StoppedError
            if self.step < self.plan.total_steps and self.plan.is_checkpoint_due(self.step, self.spec.checkpoint.every_epochs):
                self._evaluate_and_save()
                self.reporter.phase("training")
            elif self.step < self.plan.total_steps and self.plan.is_step_due(self.step, self.spec.checkpoint.every_steps):
                self._share_statistics()
                self._save({})

    def _finish(self) -> None:
        self._evaluate_and_save(is_last=True)
        self.reporter.phase("finishing")
        if self.publisher is not None:
            self.publisher.finish(self.stop)

    def _evaluate_and_save(self, *, is_last: bool = False) -> None:
        average = self.trainer.average
        if (average is not None and average.has_own_statistics) or (is_last and self.spec.recalibrate != "off"):
            self.reporter.phase("recalibrating")
            self._recalibrate()
        self.reporter.phase("evaluating")
        self._share_statistics()
        values = evaluate(
            self.trainer.evaluated,
            self.trainer.task,
            self.splits.test,
            self.ranks,
            self.trainer.precision,
            batch_size=self._samples_per_pass(),
            stop=self.stop,
        )
        self._settle_held_out()
        self._save(self.reporter.metrics(self.step, values))

    def _share_statistics(self) -> None:
        """Where running statistics differ between ranks, take those of rank 0, as DistributedDataParallel does."""
        if self.spec.norm.kind == "batch_norm" or self.group is not None:
            self.ranks.adopt_first(self.trainer.model.buffers())
            if self.trainer.average is not None:
                self.ranks.adopt_first(self.trainer.average.model.buffers())

    def _save(self, metrics: dict[str, float]) -> None:
        """Copy the state and have it published in the background. Every rank must call."""
        if self.publisher is not None:
            # What is being written lies in the buffers that are filled next.
            self.publisher.wait()
        state = capture(self.trainer, self.step, self.ranks, self.buffers)
        if state is not None and self.publisher is not None:
            manifest = draft_manifest(self.assignment, self.plan, self.step, self.trainer.evaluated, metrics)
            self.publisher.submit(Snapshot(manifest, state.model, state.training, state.scalars))

    def _settle_held_out(self) -> None:
        """Count the samples of the evaluation that could not be read, where samples are read from files."""
        if self.spec.data.path is not None:
            bad = taken_bad(self.splits.test)
            total = self.ranks.sum(torch.tensor(len(bad), dtype=torch.float64, device=self.ranks.device))
            self.bad_held_out.settle(self.step, bad, int(total))

    def _samples_per_pass(self) -> int:
        """Return how many samples surely fit into memory at once without gradients: as many as trained with them, on one rank."""
        return max(1, self.spec.batch_size // (self.spec.accumulate * self.ranks.world_size))

    def _recalibrate(self) -> None:
        """Re-estimate the running statistics over the first samples of the training set.

        Whole batches are dealt out to the ranks, because each is normalized by its own statistics: so the result does not depend on the
        world size. They have the size of the batches that were normalized together in training.
        """
        asked = RecalibrateSpec() if self.spec.recalibrate == "off" else self.spec.recalibrate
        count = min(asked.num_samples, self.splits.train.num_samples)
        together = max(1, self.spec.batch_size // self.spec.accumulate)
        with blame(TaskError), self.trainer.precision.forward():
            syncbn.recalibrate(
                self.trainer.evaluated, self._images(even_batches(count, together)[self.ranks.rank :: self.ranks.world_size])
            )

    def _images(self, batches: Sequence[slice]) -> Iterator[torch.Tensor]:
        for batch in batches:
            indices = np.arange(batch.start, batch.stop, dtype=np.int64)
            yield self.trainer.precision.place(*self.splits.train.batch(indices, 0))[0]

    def _resumed_from(self) -> Loaded | None:
        """Read the checkpoint to start from, on every rank."""
        if self.assignment.resume is None:
            return None
        job_id, _, step = self.assignment.resume.partition("/")
        return load(self.storage, job_id, int(step))


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
