"""The training step: from a step number to changed parameters, the same on any number of ranks.

Owns the gradient of the global batch, precision, and the loss that is reported. Knows no Ray, no events, no checkpoints; the loop around
the steps is `worker.session`.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import syncbn
from worker.averaging import Average
from worker.compilation import blame_compiler, compiled
from worker.contract.spec import JobSpec
from worker.data.assembly import Recipe
from worker.data.bad import BadSample
from worker.data.loader import Loader
from worker.data.loader_pool import Warn
from worker.data.mixing import Mixing
from worker.data.split import Array, Split
from worker.draws import Purpose, seed_draws
from worker.errors import DataError, DivergedError, TaskError, blame
from worker.optimization import build_optimizer, learning_rate
from worker.orders import Orders, Request
from worker.ranks import Pending, Ranks, Replica
from worker.sampler import Plan, Sampler
from worker.tasks.registry import build_task
from worker.tasks.task import checked_losses, checked_sums
from worker.telemetry import Layers, is_watched

# Parameters are kept in float32 except in fp64; bf16 and fp16 are the types that autocast computes in.
PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32, "fp64": torch.float64}
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a step did, over the whole global batch."""

    metrics: Mapping[str, float]
    """`loss`, the mean over the samples, and what the task makes of it, but for what it keeps for evaluations."""
    learning_rate: float
    request: Request
    """What some rank was asked to do; all ranks learn it in the same step."""
    wait_s: float
    """How long the ranks waited for their batches, on average."""
    num_bad: int
    """Samples that could not be read, over all ranks."""
    bad: tuple[BadSample, ...] = ()
    """Those of them that this rank met."""
    layers: Layers | None = None
    """What the normalization layers did, on steps that are watched."""


class Precision:
    """How one job computes: the type of its images, the layout of its memory, and the context of its forward pass."""

    def __init__(self, spec: JobSpec, device: torch.device) -> None:
        self.device = device
        self.dtype = PARAMETER_DTYPES[spec.precision]
        self._is_channels_last = spec.channels_last
        self._autocast_dtype = AUTOCAST_DTYPES.get(spec.precision)

    def place_model(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, type and layout of the job."""
        dimensions = max((parameter.dim() for parameter in model.parameters()), default=0)
        return model.to(self.device, self.dtype, memory_format=self._layout(dimensions))  # type: ignore[call-overload, no-any-return]

    def place(self, x: Tensor | Array, y: Tensor | Array) -> tuple[Tensor, Tensor]:
        """Move a batch to the device, type and layout of the job."""
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        x = x.to(self.device, self.dtype, non_blocking=True, memory_format=self._layout(x.dim()))
        return x, y.to(self.device, non_blocking=True)

    def forward(self) -> torch.autocast | nullcontext[None]:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, self._autocast_dtype) if self._autocast_dtype else nullcontext()

    def _layout(self, dimensions: int) -> torch.memory_format:
        """Return the layout of tensors with so many dimensions, batch and channels counted."""
        known = {4: torch.channels_last, 5: torch.channels_last_3d}
        return known.get(dimensions, torch.contiguous_format) if self._is_channels_last else torch.contiguous_format


class Trainer:
    """The state that steps change: model, optimizer, gradient scaler, average. Every rank has one, and all stay equal.

    It outlives the group of ranks that it is trained in: `join` one, `leave` it when it is broken, join the next. `before_update` is called
    before a step changes anything but buffers and gradients: it returns when nobody reads what the update will change.
    """

    _ranks: Ranks
    _replica: Replica

    def __init__(
        self,
        spec: JobSpec,
        plan: Plan,
        data: Split,
        model: nn.Module,
        *,
        device: torch.device,
        sampler: Sampler,
        warn: Warn,
        before_update: Callable[[], None],
    ) -> None:
        self.model = model
        self.optimizer = build_optimizer(spec.optimizer, model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        self.precision = Precision(spec, device)
        self.task = build_task(spec.task, data)
        self.average = Average(spec.average, plan, model) if spec.average else None
        self._spec, self._plan, self._sampler, self._before_update = spec, plan, sampler, before_update
        self._data = Loader(
            Recipe(data, Mixing(spec.data.mixup, spec.seed, data.num_classes) if spec.data.mixup else None),
            replace(sampler),
            num_processes=spec.data.loader_workers,
            prefetch=spec.data.prefetch,
            is_pinned=device.type == "cuda",
            warn=warn,
        )

    def join(self, ranks: Ranks) -> None:
        """Train with these ranks from now on, on the share that is this rank's among them. Collectives: those of `Ranks.replicate`."""
        self._ranks = ranks
        if (ranks.rank, ranks.world_size) != (self._sampler.rank, self._sampler.world_size):
            self._sampler = replace(self._sampler, rank=ranks.rank, world_size=ranks.world_size)
            self._data.follow(replace(self._sampler))
        self._replica = ranks.replicate(compiled(self.model, self._spec))

    def leave(self) -> None:
        """Let go of the group, and of what a step had begun and not ended."""
        self.__dict__.pop("_replica", None)
        self.__dict__.pop("_ranks", None)
        self._data.take_wait_s()
        self._data.take_bad()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        self.evaluated.train()

    def close(self) -> None:
        """End what loads the data."""
        self._data.close()

    def step(self, step: int, orders: Orders) -> StepResult:
        """Train on the global batch of one step, counted from 0. The last thing that can fail comes before anything but buffers changes.

        Raises:
            DivergedError: the loss is NaN or infinite; on every rank alike.
            DataError, TaskError: the data or the model raised.
            PeerLostError: another rank went away.
            WorkerError: what the update would change is still being copied, after a long time.

        Collectives: those of the model's forward and backward, the gradients' all_reduces, and one all_reduce of 4 + K float64 for a task
            with K sums; on a watched step one more of 2 float64 per layer. A rank with an empty share takes part in all of them.
        """
        rate = learning_rate(self._spec, self._plan, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_draws(self._spec.seed, Purpose.STEP, step, self._ranks.rank)
        count = len(self._sampler.batch(step))
        with blame(TaskError), blame_compiler(self._spec), self._statistics_of_a_step(), self._watching(step) as records:
            totals = self._accumulate_gradients(step, count, orders.request)
            layers = None if records is None else records.collect()
            self._ranks.confirm()
            self._before_update()
            self._clip_gradients()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        asked, wait_s, num_bad, loss_sum, *sums = totals.tolist()
        if not math.isfinite(loss_sum):
            raise DivergedError(
                f"the loss is {loss_sum} at step {step + 1}; expected a finite number; lower optimizer.lr or lengthen the warm-up"
            )
        if self.average is not None:
            self.average.follow(self.model, step + 1)
        with blame(TaskError):
            metrics = {name: value for name, value in self.task.metrics(sums, count).items() if "/" not in name}
        wait_s /= self._ranks.world_size
        request = Request.of_sum(asked)
        bad = self._data.take_bad()
        return StepResult({"loss": loss_sum / count, **metrics}, rate, request, wait_s, int(num_bad), bad, layers)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved: the average where there is one."""
        return self.model if self.average is None else self.average.model

    def _statistics_of_a_step(self) -> AbstractContextManager[None]:
        """Return a context that moves the running statistics once, by all micro-batches of a step together."""
        return syncbn.accumulated_statistics(self.model) if self._spec.accumulate > 1 else nullcontext()

    def _watching(self, step: int) -> AbstractContextManager[syncbn.Telemetry | None]:
        """Return a context that watches the layers, on the steps that are watched. A model compiled whole would be compiled anew for it."""
        is_due = self._spec.compile != "model" and is_watched(step, self._plan.total_steps)
        return syncbn.telemetry(self.model) if is_due else nullcontext()

    def _accumulate_gradients(self, step: int, count: int, request: Request) -> Tensor:
        """Leave the gradient of the mean loss over the global batch in the parameters.

        DDP averages:  (1 / R) sum_r grad(loss_r)        so with loss_r = (R / B) sum_i loss_ri it is the gradient of the mean over B

        Returns:
            Over all ranks: the sum of what each was asked to do, how long they waited for data, how many samples could not be read, the sum
            of the losses, and the task's sums.
        """
        weight = self._ranks.world_size / count
        last = len(self._sampler.micro_batches(step)) - 1
        measured = []
        for part in range(last):
            with self._replica.without_averaging():
                loss, sums = self._forward(step, part)
                self._backward(loss, weight)
                measured.append(sums)
        loss, sums = self._forward(step, last)
        own = sums.new_tensor([float(request), self._data.take_wait_s(), self._data.num_bad])
        totals = torch.cat([own, torch.stack([*measured, sums]).sum(0)])
        # Begun before backward, so that it is done by its end.
        pending: Pending = self._ranks.start_sum(totals)
        self._backward(loss, weight)
        pending.wait()
        return totals

    def _forward(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses of a micro-batch on this rank, with its gradient, and that beside the task's sums, (1 + K,)."""
        with blame(DataError):
            x, y = self.precision.place(*self._data.batch(step, part))
        with self.precision.forward():
            outputs: Any = self._replica(x)
            loss = checked_losses(self.task.losses(outputs, y), y).sum()
            sums = checked_sums(self.task.sums(outputs, y))
        return loss, torch.cat([loss.detach().double().unsqueeze(0), sums.detach().to(loss.device, torch.float64)])

    def _backward(self, loss: Tensor, weight: float) -> None:
        torch.autograd.backward(self.scaler.scale(loss * weight))

    def _clip_gradients(self) -> None:
        """Scale the gradient of the whole batch, which every rank has by now, down to the norm that the spec allows."""
        if self._spec.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._spec.clip_norm)
