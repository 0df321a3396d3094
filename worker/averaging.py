"""The average of a model over training: what is evaluated and saved in its place. Owns the rule by which it moves.

How far it moves after a step is a pure function of the step, so that the average itself is all the state there is.

Running statistics: an exponential average follows the model closely, and its statistics are averaged like the parameters. The mean of
distant models has activations of its own, so that its statistics are estimated anew before it is evaluated (`has_own_statistics`).
"""

import copy

import torch
from torch import Tensor, nn

from worker.contract.spec import EmaSpec, SwaSpec
from worker.sampler import Plan


def weight_after(spec: EmaSpec | SwaSpec, plan: Plan, step: int) -> float:
    """Return the weight w that the model gets in its average after `step` completed steps: average = (1 - w) average + w model.

        ema:  w = 1 - min(decay, (1 + step) / (10 + step))
        swa:  w = 1 / k at the k-th end of an epoch, or of the job, after `start`; 1 before it; 0 within epochs

    The exponential average forgets quickly at first, so that the initial parameters do not weigh for long.
    """
    if isinstance(spec, EmaSpec):
        return 1 - min(spec.decay, (1 + step) / (10 + step))
    if step % plan.steps_per_epoch and step != plan.total_steps:
        return 0.0
    first = spec.start * plan.total_steps
    num_ends_before = (step - 1) // plan.steps_per_epoch - int(first // plan.steps_per_epoch)
    return 1.0 if step <= first else 1 / (max(0, num_ends_before) + 1)


class Average:
    """The averaged model of one rank. All ranks have the same, because they have the same model."""

    def __init__(self, spec: EmaSpec | SwaSpec, plan: Plan, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self._spec, self._plan = spec, plan

    @property
    def has_own_statistics(self) -> bool:
        """Whether the running statistics must be estimated anew before the average is used."""
        return isinstance(self._spec, SwaSpec)

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Move towards the model after `step` completed steps, parameters and floating buffers alike; other buffers are copied."""
        weight = weight_after(self._spec, self._plan, step)
        if weight == 0:
            return
        pairs = [(own, theirs.detach()) for own, theirs in zip(_tensors(self.model), _tensors(model), strict=True)]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        for own, theirs in pairs:
            if not own.is_floating_point():
                own.copy_(theirs)
        if weight == 1:
            for own, theirs in floating:
                own.copy_(theirs)
        else:
            torch._foreach_lerp_([own for own, _ in floating], [theirs for _, theirs in floating], weight)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
