"""One rank's part in one attempt of a job, from the assignment to the last step. Knows no Ray.

Owns the order of things: meet, build, adopt state, train, evaluate, save, leave. What each of them is, is elsewhere.
"""

import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import syncbn
from worker.checkpoint import Loaded, Snapshot, load
from worker.compilation import patience
from worker.contract.advice import advise
from worker.contract.assignment import Assignment
from worker.contract.events import EventType
from worker.contract.manifest import checkpoint_name, checkpoints_directory
from worker.contract.spec import RecalibrateSpec
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
from worker.state import capture, restore_model, restore_training, seed_generators
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
    _require_shared_storage(assignment)
    seed_generators(spec.seed, assignment.rank, assignment.attempt)
    splits = build_data(spec.data, spec.seed)
    publisher = None
    if assignment.rank == 0:
        publisher = Publisher(_checkpoints_of(assignment, assignment.job_id), spec.checkpoint, events)
        publishers.append(publisher)
        for problem in advise(spec):
            events.emit(EventType.WARNING, {"code": "spec_advice", "message": str(problem)})
    session = _Session(assignment, ranks, splits, publisher=publisher, events=events, stop=stop)
    outcome = session.run()
    del session
    leave()
    return outcome


class _Session:
    """The parts of one rank while it trains."""

    def __init__(
        self,
        assignment: Assignment,
        ranks: Ranks,
        splits: Splits,
        *,
        publisher: Publisher | None,
        events: EventBuffer,
        stop: threading.Event,
    ) -> None:
        spec = assignment.spec
        self.assignment, self.spec, self.ranks, self.splits, self.publisher, self.stop = assignment, spec, ranks, splits, publisher, stop
        self.plan = Plan(splits.train.num_samples, spec.batch_size, spec.epochs, spec.steps)
        self.reporter = Reporter(events, self.plan, ranks.rank)
        self.group = None if spec.norm.group_size == "all" else syncbn.norm_groups(spec.norm.group_size, prefer_node_local=False)
        model = build_model(spec.model, spec.norm, training_norm(spec.norm, self.group), splits.train, spec.seed, task=spec.task.name)
        loaded = self._resumed_from()
        if loaded is not None:
            restore_model(model, loaded.model, str(assignment.resume))
        self.trainer = Trainer(spec, self.plan, splits.train, Precision(spec, ranks.device).place_model(model), ranks)
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
        return "succeeded"

    def _train(self) -> None:
        """Train to the last step; save on the way, but not at the end."""
        self.reporter.phase("training")
        while self.step < self.plan.total_steps:
            result = self.trainer.step(self.step, self.stop)
            self.step += 1
            self.reporter.step(self.step, result)
            if result.is_stop_asked:
                raise StoppedError
            if self.step < self.plan.total_steps and self.plan.is_checkpoint_due(self.step, self.spec.checkpoint.every_epochs):
                self._evaluate_and_save()
                self.reporter.phase("training")

    def _finish(self) -> None:
        self._evaluate_and_save(is_last=True)
        self.reporter.phase("finishing")
        if self.publisher is not None:
            self.publisher.finish()

    def _evaluate_and_save(self, *, is_last: bool = False) -> None:
        average = self.trainer.average
        if (average is not None and average.has_own_statistics) or (is_last and self.spec.recalibrate != "off"):
            self.reporter.phase("recalibrating")
            self._recalibrate()
        self.reporter.phase("evaluating")
        if self.spec.norm.kind == "batch_norm" or self.group is not None:
            # Running statistics differ between ranks here; those of rank 0 are evaluated and saved, as DistributedDataParallel does.
            self.ranks.adopt_first(self.trainer.model.buffers())
            if average is not None:
                self.ranks.adopt_first(average.model.buffers())
        values = evaluate(
            self.trainer.evaluated,
            self.trainer.task,
            self.splits.test,
            self.ranks,
            self.trainer.precision,
            batch_size=self._samples_per_pass(),
            stop=self.stop,
        )
        metrics = self.reporter.metrics(self.step, values)
        state = capture(self.trainer, self.step, self.ranks)
        if state is not None and self.publisher is not None:
            manifest = draft_manifest(self.assignment, self.plan, self.step, self.trainer.evaluated, metrics)
            self.publisher.submit(Snapshot(manifest, state.model, state.training, state.scalars))

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
        return load(_checkpoints_of(self.assignment, job_id) / checkpoint_name(int(step)))


def _checkpoints_of(assignment: Assignment, job_id: str) -> Path:
    return assignment.storage / checkpoints_directory(job_id)


def _require_shared_storage(assignment: Assignment) -> None:
    path = assignment.storage / assignment.marker
    if not path.is_file():
        raise StorageNotSharedError(
            f"rank {assignment.rank} does not see {path}, which the controller wrote: the storage path must be the same shared directory on"
            " every node and for the controller; mount it on this node, or use one node"
        )


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
