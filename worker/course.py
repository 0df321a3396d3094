"""What the ranks of one group do together: train, evaluate, save, re-estimate the statistics, part. Knows no Ray and no losses.

Owns the order of things from wherever the state is to the end. A rank that loses its peers leaves this by an exception, at any point;
the next group's course begins at the step that its ranks agreed on.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

import syncbn
from worker.checkpoint import Snapshot
from worker.contract.assignment import Assignment
from worker.contract.catalogue import OWN_STATISTICS_NORMS
from worker.contract.manifest import Manifest
from worker.contract.names import is_code
from worker.contract.spec import RecalibrateSpec
from worker.copying import Copy
from worker.data.assembly import taken_bad
from worker.draws import Purpose, seed_draws
from worker.errors import PeerLostError, TaskError, blame
from worker.evaluation import StoppedError, evaluate
from worker.export import Exporter
from worker.holding import BEFORE, Holding
from worker.orders import Orders, Request
from worker.publisher import Publisher
from worker.pulse import Pulse
from worker.ranks import Ranks
from worker.sampler import even_batches
from worker.snapshot import draft_manifest
from worker.state import present

Outcome = Literal["succeeded", "paused", "stopped"]

FAREWELL_S = 0.5
"""How often the ranks tell each other that rank 0 still writes the last checkpoint, or waits to be heard."""
HEARD_S = 5.0
"""How long rank 0 waits for a controller to have stored what it said. One that is away finds it later, where rank 0 lives to tell."""


class Course:
    """The way of one group through the job."""

    def __init__(
        self, holding: Holding, assignment: Assignment, ranks: Ranks, *, publisher: Publisher | None, orders: Orders, pulse: Pulse
    ) -> None:
        self.holding, self.assignment, self.ranks, self.publisher, self.orders = holding, assignment, ranks, publisher, orders
        self.pulse = pulse
        self.spec, self.plan, self.trainer, self.reporter = holding.spec, holding.plan, holding.trainer, holding.reporter

    def run(self, *, is_saved: bool) -> Outcome:
        """Go on from the holding's step to the end, or until some rank is asked to pause or to stop.

        Args:
            is_saved: what is due at the step was done by the group before.
        """
        try:
            if not is_saved:
                self._do_what_is_due()
            if self._train() is Request.PAUSE:
                self._pause()
                return "paused"
            self._finish()
        except StoppedError:
            return "stopped"
        return "succeeded"

    def _phase(self, name: str) -> None:
        self.reporter.phase(name, self.holding.step)

    def _do_what_is_due(self) -> None:
        """Evaluate and save where that is due after the present step; after the last one it has its own place."""
        step = self.holding.step
        if not 0 < step < self.plan.total_steps:
            return
        if self.plan.is_checkpoint_due(step, self.spec.checkpoint.every_epochs):
            self._evaluate_and_save()
            self._phase("training")
        elif self.plan.is_step_due(step, self.spec.checkpoint.every_steps):
            self._save({})

    def _train(self) -> Request:
        """Train to the last step; save on the way, but not at the end. Return PAUSE where that is asked before the last step."""
        holding = self.holding
        self._phase("training")
        while holding.step < self.plan.total_steps:
            self._require_newest()
            with self.pulse.step(holding.step), holding.advancing():
                result = self.trainer.step(holding.step, self.orders)
            self.reporter.step(holding.step, result)
            holding.bad.settle((holding.step - 1) // self.plan.steps_per_epoch, result.bad, result.num_bad)
            if result.request is Request.STOP:
                raise StoppedError
            self._do_what_is_due()
            if result.request is Request.PAUSE and holding.step < self.plan.total_steps:
                return Request.PAUSE
        return Request.GO_ON

    def _require_newest(self) -> None:
        """Leave the group where another one is to be: gloo lets collectives that are begun after an interruption succeed."""
        if self.orders.generation > self.assignment.generation:
            raise PeerLostError(f"the ranks are to meet anew, as generation {self.orders.generation}, after step {self.holding.step}")

    def _finish(self) -> None:
        self._evaluate_and_save(is_last=True)
        self._part()

    def _pause(self) -> None:
        """Save the state at this step, without evaluating it: a job that is never paused would not do so here."""
        if self.holding.saved != self.holding.step:
            self._save({})
        self._part()

    def _part(self) -> None:
        """Keep every rank, and the state that it holds, until rank 0 has published the last checkpoint and was heard.

        Collectives: one all_reduce of 2 float64 every FAREWELL_S.
        """
        self._phase("finishing")
        is_done, is_stop_asked, published_at = False, False, math.inf
        while not is_done:
            mine = self.publisher is not None and self.publisher.is_idle(FAREWELL_S)
            if mine and self.publisher is not None:
                self.publisher.finish(self.orders.stop)
                published_at = min(published_at, time.monotonic())
                mine = self.reporter.is_heard(FAREWELL_S) or time.monotonic() > published_at + HEARD_S
            words = self.ranks.sum(torch.tensor([mine, self.orders.stop.is_set()], dtype=torch.float64, device=self.ranks.device))
            is_done, is_stop_asked = (bool(word) for word in words.tolist())
            if is_stop_asked and not is_done:
                raise StoppedError

    def _evaluate_and_save(self, *, is_last: bool = False) -> None:
        """Do what is due at this step. Done again after a loss it comes to the same: nothing in it depends on what it changes."""
        average = self.trainer.average
        if (average is not None and average.has_own_statistics) or (is_last and self.spec.recalibrate != "off"):
            if self.plan.total_steps == 0 and self.holding.before is None:
                self.holding.before = {f"{BEFORE}{name}": value for name, value in self._evaluate().items()}
            self._phase("recalibrating")
            self._recalibrate()
        self._save(self.reporter.metrics(self.holding.step, (self.holding.before or {}) | self._evaluate()))

    def _evaluate(self) -> dict[str, float]:
        """Return loss and metrics over the held-out samples."""
        self._phase("evaluating")
        seed_draws(self.spec.seed, Purpose.EVALUATION, self.holding.step, self.ranks.rank)
        self._share_statistics()
        values = evaluate(
            self.trainer.evaluated,
            self.trainer.task,
            self.holding.splits.test,
            self.ranks,
            self.trainer.precision,
            batch_size=self._samples_per_pass(),
            stop=self.orders.stop,
        )
        self._settle_held_out()
        return values

    def _share_statistics(self) -> None:
        """Where running statistics differ between ranks, take those of rank 0, as DistributedDataParallel does."""
        if self.spec.norm.kind in OWN_STATISTICS_NORMS or self.spec.norm.group_size != "all":
            self.ranks.adopt_first(self.trainer.model.buffers())
            if self.trainer.average is not None:
                self.ranks.adopt_first(self.trainer.average.model.buffers())

    def _settle_held_out(self) -> None:
        """Count the samples of the evaluation that could not be read, where samples are read from files."""
        if self.spec.data.path is not None:
            bad = taken_bad(self.holding.splits.test)
            total = self.ranks.sum(torch.tensor(len(bad), dtype=torch.float64, device=self.ranks.device))
            # Every evaluation is a pass of its own, also two of the same step.
            self.holding.bad_held_out.settle(object(), bad, int(total))

    def _save(self, metrics: dict[str, float]) -> None:
        """Have the state copied and published in the background, by rank 0. Every rank must call."""
        step = self.holding.step
        self._share_statistics()
        if self.publisher is not None:
            # What is being written lies in the memory that is filled next.
            self.publisher.wait()
            statistics, inputs = syncbn.layer_statistics(self.trainer.evaluated), self.holding.splits.train
            draft = partial(draft_manifest, self.assignment, self.plan, step, statistics, inputs=inputs, metrics=metrics)
            state = present(self.trainer, step, self.ranks.world_size)
            copy = self.holding.copying.begin(step, state.tensors)
            if is_code(self.spec.model.name):
                # Nobody knows what its forward changes.
                self.holding.copying.settle()
            export = Exporter(self.spec, self.holding.splits) if self.spec.export else None
            scalars = state.scalars | {"reports": self.reporter.recent()}
            self.publisher.submit(step, partial(_snapshot, draft, copy, scalars, export))
        self.holding.saved = step

    def _samples_per_pass(self) -> int:
        """Return how many samples surely fit into memory at once without gradients: as many as trained with them, on one rank."""
        return max(1, self.spec.batch_size // (self.spec.accumulate * self.ranks.world_size))

    def _recalibrate(self) -> None:
        """Re-estimate the running statistics over the first samples of the training set.

        Whole batches are dealt out to the ranks, because each is normalized by its own statistics: so the result does not depend on the
        world size. They have the size of the batches that were normalized together in training.
        """
        seed_draws(self.spec.seed, Purpose.RECALIBRATION, self.holding.step, self.ranks.rank)
        asked = RecalibrateSpec() if self.spec.recalibrate == "off" else self.spec.recalibrate
        count = min(asked.num_samples, self.holding.splits.train.num_samples)
        together = max(1, self.spec.batch_size // self.spec.accumulate)
        with blame(TaskError), self.trainer.precision.forward():
            syncbn.recalibrate(
                self.trainer.evaluated,
                self._images(even_batches(count, together)[self.ranks.rank :: self.ranks.world_size]),
                estimator=asked.estimator,
            )

    def _images(self, batches: Sequence[slice]) -> Iterator[torch.Tensor]:
        for batch in batches:
            indices = np.arange(batch.start, batch.stop, dtype=np.int64)
            yield self.trainer.precision.place(*self.holding.splits.train.batch(indices, 0))[0]


def _snapshot(draft: Callable[[], Manifest], copy: Copy, scalars: Mapping[str, Any], export: Exporter | None) -> Snapshot:
    """Return what is to be written, when it is copied. No method: the publisher keeps it, and must not keep the group of ranks."""
    copies = copy.take()
    return Snapshot(draft(), copies["model"], copies["training"], scalars, export)
