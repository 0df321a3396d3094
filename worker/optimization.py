"""The optimizer of a spec, and its learning rate at every step. Owns no state of its own: the rate is a pure function of the step."""

import math

import torch
from torch import nn

from worker.contract.spec import AdamWSpec, JobSpec, SgdSpec
from worker.sampler import Plan


def build_optimizer(spec: SgdSpec | AdamWSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters, in one group; its rate is set anew at every step."""
    parameters = list(model.parameters())
    if isinstance(spec, AdamWSpec):
        return torch.optim.AdamW(parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.nesterov)


def full_rate(spec: JobSpec) -> float:
    """Return the rate after the warm-up: lr, times batch_size / lr_batch_size where the latter is given.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD": the linear scaling rule, which needs a warm-up at large batches.
    """
    optimizer = spec.optimizer
    return optimizer.lr if optimizer.lr_batch_size is None else optimizer.lr * spec.batch_size / optimizer.lr_batch_size


def learning_rate(spec: JobSpec, plan: Plan, step: int) -> float:
    """Return the learning rate of a step, counted from 0.

        warm-up, step < w:   lr (step + 1) / w                               w = warmup_epochs in steps
        constant, after it:  lr
        cosine, after it:    lr (1 + cos(pi (step - w) / (total - w))) / 2

    where lr is `full_rate`. The warm-up starts one step above zero, because a step of rate zero would be a step wasted.
    """
    full = full_rate(spec)
    warmup_steps = min(round(spec.schedule.warmup_epochs * plan.steps_per_epoch), plan.total_steps)
    if step < warmup_steps:
        return full * (step + 1) / warmup_steps
    if spec.schedule.name == "constant":
        return full
    done = (step - warmup_steps) / (plan.total_steps - warmup_steps)
    return full * (1 + math.cos(math.pi * done)) / 2
