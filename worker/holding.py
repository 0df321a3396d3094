"""What a rank keeps in memory from one group of ranks to the next: data, model, optimizer, and how far they are.

Owns the number of completed steps, the copies that an interrupted step is undone with, the copying for checkpoints, and the handing over
of the whole state to ranks that have none. Knows no checkpoint files but the one that it starts from.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import safetensors.torch
import torch

from worker.checkpoint import Loaded, load
from worker.contract.assignment import Assignment
from worker.copying import Copying
from worker.data.bad import BadSamples
from worker.data.registry import build_data
from worker.models.norms import training_norm
from worker.models.registry import build_model
from worker.progress import EventBuffer
from worker.ranks import Ranks
from worker.recovery import Decision, View, decide
from worker.reports import Reporter
from worker.sampler import Plan, Sampler
from worker.state import State, capture, restore_model, restore_training
from worker.storage.storage import Storage
from worker.training import Precision, Trainer

BEFORE = "before/"
"""Begins the names of metrics of the checkpoint that a job without steps began with."""


class Holding:
    """One rank's data and state of training. Lives as long as the process trains."""

    def __init__(self, assignment: Assignment, device: torch.device, storage: Storage, events: EventBuffer) -> None:
        spec = assignment.spec
        self.spec, self.device, self.storage = spec, device, storage
        self.splits = build_data(spec.data, spec.seed)
        self.plan = Plan(self.splits.train.num_samples, spec.batch_size, spec.epochs, spec.steps)
        self.reporter = Reporter(events, self.plan)
        # Placed before anything is loaded: a checkpoint of double precision must not pass through the single precision of a fresh model.
        model = Precision(spec, device).place_model(
            build_model(spec.model, spec.norm, training_norm(spec.norm), self.splits.train, spec.seed, task=spec.task.name)
        )
        self.bad, self.bad_held_out = (BadSamples(spec.data.max_bad, self.reporter.warn) for _ in range(2))
        self.rank: int | None = None
        """In its last group; None before the first."""
        # A process that takes a dead one's place gets the state of a living one; a checkpoint would be older.
        self.has_state = assignment.begins
        resume = assignment.resume if self.has_state else None
        loaded = None if resume is None else _load(storage, resume)
        if loaded is not None:
            restore_model(model, loaded.model, str(resume))
        sampler = Sampler(self.plan, spec.seed, assignment.rank, assignment.world_size, spec.accumulate)
        self.copying = Copying()
        """For checkpoints. Outlives a group like the state: a copy may be under way when one breaks."""
        self.trainer = Trainer(
            spec,
            self.plan,
            self.splits.train,
            model,
            device=device,
            sampler=sampler,
            warn=self.reporter.warn,
            before_update=self.copying.settle,
        )
        self.step = 0
        """Completed steps."""
        if loaded is not None and loaded.manifest.job_id == assignment.job_id:
            self.step = restore_training(self.trainer, loaded)
            self.reporter.remember(loaded.scalars.get("reports", []))
        self.saved = self.step
        """The step at which it last evaluated and handed the checkpoint over to be written."""
        self.before = _before(loaded.manifest.metrics if loaded is not None and loaded.manifest.job_id == assignment.job_id else {})
        """In a job without steps, what was measured of the checkpoint that it began with; None before that is done. Cannot be measured
        again once the statistics are others."""
        self._kept: list[torch.Tensor] | None = None

    @contextmanager
    def advancing(self) -> Iterator[None]:
        """Around a step: keeps the buffers as they are, so that it can be undone where it fails half-way."""
        self._kept = [buffer.detach().clone() for buffer in self.trainer.model.buffers()]
        yield
        self.step += 1
        self._kept = None

    def leave(self) -> None:
        """Let go of a broken group, and undo what was half done."""
        self.trainer.leave()
        self._set_groups(None)
        if self._kept is not None:
            with torch.no_grad():
                for buffer, kept in zip(self.trainer.model.buffers(), self._kept, strict=True):
                    buffer.copy_(kept)
            self._kept = None

    def join(self, ranks: Ranks, group: Any) -> Decision:
        """Agree with the ranks of a new group where to go on, and take over or hand over the state.

        Args:
            ranks: the new group.
            group: the part of it that this rank shares its statistics with; None for all.
        Returns:
            What was decided; the same on every rank.
        Raises:
            RankLostError: no rank has state.
            WorkerError: the state is still being copied for a checkpoint, after a long time.

        Collectives: one all_gather of 5 int64; where ranks have no or an old state, broadcasts of the whole state; then those of DDP.
        """
        self._set_groups(group)
        mine = [self.rank is None, self.rank == 0, self.has_state, self.step, self.saved]
        views = (view.tolist() for view in ranks.gather(torch.tensor(mine)))
        decision = decide([View(bool(new), bool(first), bool(has_state), step, saved) for new, first, has_state, step, saved in views])
        # State that is taken over, and parameters that DDP broadcasts, are written in place.
        self.copying.settle()
        if decision.adopters:
            self._hand_over(ranks, decision)
        self.trainer.join(ranks)
        self.has_state, self.rank, self.reporter.rank = True, ranks.rank, ranks.rank
        return decision

    def _set_groups(self, group: Any) -> None:
        """Have every layer that synchronizes do so over `group`, None for all ranks."""
        for module in (*self.trainer.model.modules(), *self.trainer.evaluated.modules()):
            if hasattr(module, "process_group"):
                module.process_group = group

    def _hand_over(self, ranks: Ranks, decision: Decision) -> None:
        """Bring the state from its source to those who need it, in the form that checkpoints have, so that nothing is forgotten."""
        parts: list[bytes | None] = [None, None, None]
        if ranks.rank == decision.source:
            state = capture(self.trainer, self.step, ranks.world_size)
            words = {"scalars": state.scalars, "reports": self.reporter.recent(), "before": self.before}
            parts = [safetensors.torch.save(dict(state.model)), safetensors.torch.save(dict(state.training)), json.dumps(words).encode()]
        received = [ranks.broadcast(part, decision.source) for part in parts]
        if ranks.rank in decision.adopters:
            words = json.loads(received[2])
            state = State(safetensors.torch.load(received[0]), safetensors.torch.load(received[1]), words["scalars"])
            restore_model(self.trainer.evaluated, state.model, f"of rank {decision.source}")
            self.step = restore_training(self.trainer, state)
            self.reporter.remember(words["reports"])
            self.before = words["before"]


def _before(metrics: Mapping[str, float]) -> dict[str, float] | None:
    """Return those of the metrics that were measured before the statistics were re-estimated, None where there are none."""
    return {name: value for name, value in metrics.items() if name.startswith(BEFORE)} or None


def _load(storage: Storage, resume: str) -> Loaded:
    job_id, _, step = resume.partition("/")
    return load(storage, job_id, int(step))
