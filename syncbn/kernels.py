"""Which passes over a batch to run: the choice among the ways that there are.

Owns: the choice. The passes themselves are `loops/plain.py` (always right), `loops/cpu.py` and `loops/cuda.py` (ATen's fused kernels), and
`loops/compiled.py` (Inductor's).
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncbn.loops import compiled, cpu, cuda, plain
from syncbn.stages import Batch, EagerStages, Loops, Running, Stages


def loops_for(x: Tensor) -> Loops:
    """The loops for this batch: by device, and the plain ones where the fused kernels do not reach (tracing, empty batches)."""
    if torch.compiler.is_compiling() or x.numel() == 0:
        return plain
    if x.device.type == "cpu":
        return cpu
    return cuda if x.device.type == "cuda" else plain


def stages_for(batch: Batch, running: Running | None) -> Stages:
    """Compiled stages where they are wanted and reach this batch, single operators elsewhere. Not a matter of values: no wait for a device."""
    if not torch.compiler.is_compiling():
        stages = compiled.stages_for(batch, running)
        if stages is not None:
            return stages
    return EagerStages(loops_for(batch.x))
