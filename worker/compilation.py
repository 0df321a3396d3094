"""How a model runs in training, compiled or not. Owns the switch, and what is said when a compiler fails; the compilers are torch's.

Only training is compiled. Evaluation and re-estimation run the same model as it is, because they look into its layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import syncbn
from worker.contract.spec import JobSpec
from worker.errors import TaskError, describe
from worker.settings import WorkerSettings

COMPILATION_TIMEOUT_S = 1800.0
"""A large model takes minutes to compile on a few cores."""


def compiled(model: nn.Module, spec: JobSpec) -> nn.Module:
    """Return what runs in training in place of the model: the very same parameters, compiled where the spec asks for it.

    Compilation itself happens in the first step, for shares of any size; a share of one sample is compiled for itself. What is not compiled
    computes weights' gradients while its norms wait for other ranks.
    """
    syncbn.inner_loops("compiled" if spec.compile == "norm" else "auto")
    return _Compiled(model) if spec.compile == "model" else syncbn.overlap_weight_gradients(model)


def patience(settings: WorkerSettings, spec: JobSpec) -> WorkerSettings:
    """Return settings under which a rank that compiles, while its peers wait for it in a collective, is not taken for one that hangs."""
    if spec.compile != "model":
        return settings
    return replace(settings, collective_timeout_s=max(settings.collective_timeout_s, COMPILATION_TIMEOUT_S))


@contextmanager
def blame_compiler(spec: JobSpec) -> Iterator[None]:
    """Map what a compiler raises inside to a TaskError that names the way out."""
    try:
        yield
    except Exception as error:
        owner = type(error).__module__
        if spec.compile != "model" or not owner.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TaskError(
            f"compile: {spec.compile} failed: {describe(error)}; expected a model that torch.compile takes, and a C++ compiler on every"
            " node; set compile: off, or mend what it names"
        ) from error


class _Compiled(nn.Module):
    """A model that runs compiled where there are samples. Inductor refuses convolutions of none; those run as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Not a submodule, which would have every parameter twice.
        self.__dict__["_run"] = torch.compile(model)

    def forward(self, x: Tensor) -> Any:
        """Run the model."""
        if len(x) == 0:
            return self.model(x)
        if len(x) > 1:
            torch._dynamo.maybe_mark_dynamic(x, 0)  # noqa: SLF001  where torch documents it
        return self.__dict__["_run"](x)
