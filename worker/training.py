"""The training step: from a step number to changed parameters, the same on any number of ranks.

Owns the gradient of the global batch, precision, and the loss that is reported. Knows no Ray, no events, no checkpoints; the loop around
the steps is `worker.session`.
"""

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import syncbn
from worker.contract.spec import JobSpec
from worker.data.split import Split
from worker.errors import DataError, DivergedError, TaskError, blame
from worker.optimization import build_optimizer, learning_rate
from worker.ranks import Pending, Ranks
from worker.sampler import Indices, Plan, Sampler
from worker.tasks.classification import Sums, measure
from worker.telemetry import Layers, is_watched

# Parameters are kept in float32 except in fp64; bf16 and fp16 are the types that autocast computes in.
PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32, "fp64": torch.float64}
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a step did, over the whole global batch."""

    loss: float
    """Mean over the samples."""
    accuracy: float
    learning_rate: float
    is_stop_asked: bool
    """Some rank was asked to stop; all ranks learn it in the same step."""
    layers: Layers | None = None
    """What the normalization layers did, on steps that are watched."""


class Precision:
    """How one job computes: the type of its images, the layout of its memory, and the context of its forward pass."""

    def __init__(self, spec: JobSpec, device: torch.device) -> None:
        self.device = device
        self.dtype = PARAMETER_DTYPES[spec.precision]
        self.layout = torch.channels_last if spec.channels_last else torch.contiguous_format
        self._autocast_dtype = AUTOCAST_DTYPES.get(spec.precision)

    def place_model(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, type and layout of the job."""
        return model.to(self.device, self.dtype, memory_format=self.layout)  # type: ignore[call-overload, no-any-return]

    def place(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch to the device, type and layout of the job."""
        x = x.to(self.device, self.dtype, non_blocking=True, memory_format=self.layout)
        return x, y.to(self.device, non_blocking=True)

    def forward(self) -> torch.autocast | nullcontext[None]:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, self._autocast_dtype) if self._autocast_dtype else nullcontext()


class Trainer:
    """The state that steps change: model, optimizer, gradient scaler. Every rank has one, and all stay equal."""

    def __init__(self, spec: JobSpec, plan: Plan, data: Split, model: nn.Module, ranks: Ranks) -> None:
        self.model = model
        self.optimizer = build_optimizer(spec.optimizer, model)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=spec.precision == "fp16")
        self.precision = Precision(spec, ranks.device)
        self._spec, self._plan, self._data, self._ranks = spec, plan, data, ranks
        self._sampler = Sampler(plan, spec.seed, ranks.rank, ranks.world_size, spec.accumulate)
        self._replica = ranks.replicate(model)

    def step(self, step: int, stop: threading.Event) -> StepResult:
        """Train on the global batch of one step, counted from 0.

        Raises:
            DivergedError: the loss is NaN or infinite; on every rank alike.
            DataError, TaskError: the data or the model raised.
            PeerLostError: another rank went away.

        Collectives: those of the model's forward and backward, the gradients' all_reduces, and one all_reduce of 3 float64; on a
            watched step one more of 2 float64 per layer. A rank with an empty share takes part in all of them.
        """
        rate = learning_rate(self._spec, self._plan, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # On this rank: the sum of the losses, the number of right predictions, and whether it was asked to stop.
        totals = torch.zeros(3, dtype=torch.float64, device=self._ranks.device)
        totals[2] = float(stop.is_set())
        count = len(self._sampler.batch(step))
        with blame(TaskError), self._statistics_of_a_step(), self._watching(step) as records:
            self._accumulate_gradients(step, count, totals)
            # Before the optimizer steps: where a rank is lost in here, the step is undone on all.
            layers = None if records is None else records.collect()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        loss_sum, num_correct, num_asked = totals.tolist()
        if not math.isfinite(loss_sum):
            raise DivergedError(
                f"the loss is {loss_sum} at step {step + 1}; expected a finite number; lower optimizer.lr or lengthen the warm-up"
            )
        return StepResult(loss_sum / count, num_correct / count, rate, num_asked > 0, layers=layers)

    def _statistics_of_a_step(self) -> AbstractContextManager[None]:
        """Return a context that moves the running statistics once, by all micro-batches of a step together."""
        return syncbn.accumulated_statistics(self.model) if self._spec.accumulate > 1 else nullcontext()

    def _watching(self, step: int) -> AbstractContextManager[syncbn.Telemetry | None]:
        """Return a context that watches the layers, on the steps that are watched."""
        return syncbn.telemetry(self.model) if is_watched(step, self._plan.total_steps) else nullcontext()

    def _accumulate_gradients(self, step: int, count: int, totals: Tensor) -> None:
        """Leave the gradient of the mean loss over the global batch in the parameters, and the sums over all ranks in `totals`.

        DDP averages:  (1 / R) sum_r grad(loss_r)        so with loss_r = (R / B) sum_i loss_ri it is the gradient of the mean over B
        """
        weight = self._ranks.world_size / count
        micro_batches = self._sampler.micro_batches(step)
        epoch = step // self._plan.steps_per_epoch
        for indices in micro_batches[:-1]:
            with self._replica.without_averaging():
                self._backward(self._forward(indices, epoch, totals), weight)
        loss = self._forward(micro_batches[-1], epoch, totals)
        # Begun before backward, so that it is done by its end.
        pending: Pending = self._ranks.start_sum(totals)
        self._backward(loss, weight)
        pending.wait()

    def _forward(self, indices: Indices, epoch: int, totals: Tensor) -> Tensor:
        with blame(DataError):
            x, y = self.precision.place(*self._data.batch(indices, epoch))
        with self.precision.forward():
            sums: Sums = measure(self._replica(x), y)
        totals[0] += sums.loss.detach()
        totals[1] += sums.num_correct
        return sums.loss

    def _backward(self, loss: Tensor, weight: float) -> None:
        torch.autograd.backward(self.scaler.scale(loss * weight))
