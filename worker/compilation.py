"""What `compile` in a spec switches on. Owns the switch, and what is said when a compiler fails; the compilers are torch's.

Only training is compiled. Evaluation and re-estimation run the same model as it is, because they look into its layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from worker.contract.spec import JobSpec
from worker.errors import TaskError, describe


def compiled(model: nn.Module, spec: JobSpec) -> nn.Module:
    """Return what runs in training in place of the model: the very same parameters, compiled where the spec asks for it.

    Compilation itself happens in the first step, and again for a share of another size; the second time for all sizes.
    """
    if spec.compile == "model":
        whole: nn.Module = torch.compile(model)  # type: ignore[assignment]
        return whole
    if spec.compile == "norm":
        _compile_inner_loops(model)
    return model


@contextmanager
def blame_compiler(spec: JobSpec) -> Iterator[None]:
    """Map what a compiler raises inside to a TaskError that names the way out."""
    try:
        yield
    except Exception as error:
        owner = type(error).__module__
        if spec.compile == "off" or not owner.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TaskError(
            f"compile: {spec.compile} failed: {describe(error)}; expected a model that torch.compile takes, and a C++ compiler on every"
            " node; set compile: off, or mend what it names"
        ) from error


def _compile_inner_loops(model: nn.Module) -> None:
    """Switch the norms of a model to compiled inner loops. The library has none to offer yet: this is the place to call it."""
    del model
