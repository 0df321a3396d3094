"""Which passes over a batch to run: the choice among the ways that there are.

Owns: the choice, and the switch by which a program takes part in it. The passes themselves are `loops/plain.py` (always right),
`loops/cpu.py` and `loops/cuda.py` (ATen's fused kernels), and `loops/compiled.py` (our own, in C++).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from syncbn.errors import OptionError
from syncbn.loops import compiled, cpu, cuda, plain
from syncbn.spelling import nearest
from syncbn.stages import Batch, EagerStages, Loops, Running, Stages

_KINDS = ("auto", "aten", "compiled")


class _Wanted:
    """What the program has asked for, in this process."""

    kind = "auto"


@final
class inner_loops:  # noqa: N801  a function to those who call it, as torch.set_grad_enabled
    """Choose how layers pass over a batch, from here on, or for the length of a `with` block; in this process.

    "aten": torch's own kernels. "compiled": one pass in C++ for each of the four stages, on the CPU and for float32, float64 and bfloat16
    inputs that are contiguous or channels-last, with a mask or without; everything else goes on as with "aten". They compute the same to
    the same accuracy (docs/numerics.md), in about half the time. The first use of each dtype compiles for two to four seconds; later
    processes find the result in torch's directory of caches. Ranks may differ in it.

    "auto", the default, is "compiled" where there is a C++ compiler and "aten" where there is none. Who asks for "compiled" without one is
    told so by a RuntimeWarning, once, and "aten" goes on.
    A model under `torch.compile` needs none of this: its layers are compiled with it.

    Args:
        kind: "aten" or "compiled".
    Raises:
        OptionError: another kind.

    >>> with inner_loops("aten"):
    ...     pass
    """

    def __init__(self, kind: str) -> None:
        if kind not in _KINDS:
            raise OptionError(f"inner loops {kind!r} are unknown: expected one of {', '.join(_KINDS)}{nearest(str(kind), _KINDS)}")
        self._before, _Wanted.kind = _Wanted.kind, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        _Wanted.kind = self._before


def loops_for(x: Tensor) -> Loops:
    """The loops for this batch: by device, and the plain ones where the fused kernels do not reach (tracing, empty batches)."""
    if torch.compiler.is_compiling() or x.numel() == 0:
        return plain
    if x.device.type == "cpu":
        return cpu
    return cuda if x.device.type == "cuda" else plain


def stages_for(batch: Batch, activation: str | None, running: Running | None) -> Stages:
    """Compiled stages where they are wanted and reach this batch, single operators elsewhere. Looks at no value, so waits for no device."""
    stages = None
    if _Wanted.kind != "aten" and not torch.compiler.is_compiling():
        stages = compiled.stages_for(batch, activation, running, is_asked_for=_Wanted.kind == "compiled")
    return stages or EagerStages(loops_for(batch.x), activation)
