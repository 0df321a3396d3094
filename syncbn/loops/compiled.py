"""The four stages, compiled: one pass over the batch each, with the arithmetic of the vectors in the same function.

Owns: which batches the compiled stages take, how a batch is handed over, and the way back where compiling fails. Does not own the
passes (`passes.cpp`), their building (`library.py`) or whether they are wanted (`kernels.py`).
"""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from syncbn.loops import library
from syncbn.loops.library import address, type_of
from syncbn.native import BuildError
from syncbn.stages import Batch, Running, Saved


class Lines(NamedTuple):
    """How a batch lies in memory: N x C lines of S values each (planes), or N lines of C values (rows; S is 1)."""

    is_planes: bool
    N: int
    C: int
    S: int


def stages_for(batch: Batch, activation: str | None, running: Running | None, *, is_asked_for: bool) -> CompiledStages | None:
    """The compiled stages for a batch; None where they do not reach, or cannot be compiled: said once, if they were asked for."""
    x = batch.x
    if not (_Compiler.is_worth_asking(is_asked_for) and x.device.type == "cpu" and x.dtype in library.VALUES and type(x) is Tensor):
        return None
    lines = _lines(x)
    vectors = (batch.weight, batch.bias, *(() if running is None else (running.mean, running.var)))
    if lines is None or not all(map(library.is_readable, vectors)):
        return None
    if batch.residual is not None and batch.residual.dtype != x.dtype:
        return None
    passes = _passes(x.dtype, is_asked_for=is_asked_for)
    return None if passes is None else CompiledStages(passes, lines, activation, batch.residual is not None)


def _lines(x: Tensor) -> Lines | None:
    """How a batch lies in memory; None if it is empty, or neither contiguous nor channels-last."""
    if x.numel() == 0:
        return None
    N, C = x.shape[:2]
    S = x.numel() // (N * C)
    if S > 1 and x.is_contiguous():
        return Lines(True, N, C, S)
    return Lines(False, N * S, C, 1) if x.movedim(1, -1).is_contiguous() else None


def _passes(dtype: torch.dtype, *, is_asked_for: bool) -> Any:
    try:
        return library.library_for(dtype)
    except BuildError as failure:
        _Compiler.works = False
        _Compiler.has_warned = is_asked_for
        if is_asked_for:
            warnings.warn(
                f"the inner loops could not be compiled ({failure}): expected a C++17 compiler such as g++ in the PATH; going on with the "
                "loops that need none, which compute the same",
                RuntimeWarning,
                stacklevel=2,
            )
        return None


class _Compiler:
    """What is known of it: after a failure it is not asked again, but for saying so once to who asks for it."""

    works = True
    has_warned = False

    @classmethod
    def is_worth_asking(cls, is_asked_for: bool) -> bool:
        return cls.works or (is_asked_for and not cls.has_warned)


@final
@dataclass(frozen=True)
class CompiledStages:
    """The stages for one batch."""

    passes: Any
    lines: Lines
    activation: str | None
    has_residual: bool

    def local_sums(self, x: Tensor, mask: Tensor | None) -> tuple[None, Tensor]:
        """One pass, or two where the shift of the first was not good."""
        total = torch.empty(2 * self.lines.C + 1, dtype=torch.float64)
        inside = _dense(mask)
        self._call("local_sums", x=address(x), mask=address(inside), total=address(total))
        return None, total

    def normalize(self, batch: Batch, _: None, total: Tensor, running: Running | None) -> tuple[Tensor, Saved]:
        """One pass, the running statistics moved before it."""
        x, mask, weight_C, bias_C, residual, eps = batch
        C, y = self.lines.C, torch.empty_like(x)
        mean_C, invstd_C = torch.empty(C, dtype=torch.float64), torch.empty(C, dtype=torch.float64)
        rounded_3C = torch.empty(3, C, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        laid_out = None if residual is None else _laid_out(residual, x)
        total, inside = total.contiguous(), _dense(mask)
        moved: dict[str, Any] = {}
        if running is not None:
            moved = {
                "running_mean": address(running.mean),
                "running_var": address(running.var),
                "running_type": type_of(running.mean),
                "momentum": float(running.momentum),
                "is_unbiased": running.unbiased,
            }
        self._call(
            "normalize",
            x=address(x),
            residual=address(laid_out),
            mask=address(inside),
            y=address(y),
            total=address(total),
            weight=address(weight_C),
            weight_type=type_of(weight_C),
            bias=address(bias_C),
            bias_type=type_of(bias_C),
            eps=eps,
            mean=address(mean_C),
            invstd=address(invstd_C),
            rounded=address(rounded_3C),
            **moved,
        )
        if self.activation is None:
            bias_C = residual = None
        return y, Saved(x, weight_C, bias_C, residual, mask, total[0], mean_C, invstd_C, rounded_3C)

    def gradient_sums(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass, in which the argument of the activation is computed again; kept is dy in the layout of x."""
        C, dy = self.lines.C, _laid_out(dy, saved.x)
        summed = torch.empty(2 * C, dtype=torch.float64)
        dtype = torch.float64 if saved.weight is None else saved.weight.dtype
        dweight_C, dbias_C = torch.empty(C, dtype=dtype), torch.empty(C, dtype=dtype)
        self._call_backward(
            "gradient_sums",
            dy,
            saved,
            summed=address(summed),
            dweight=address(dweight_C),
            dbias=address(dbias_C),
            gradient_type=type_of(dweight_C),
        )
        return dy, summed, dweight_C, dbias_C

    def input_gradient(self, kept: Tensor, saved: Saved, summed: Tensor) -> tuple[Tensor, Tensor]:
        """One pass, in which the gradient of the activation's argument is computed again."""
        dx, summed = torch.empty_like(saved.x), summed.contiguous()
        is_another = self.activation is not None or saved.mask is not None  # than the gradient of the output
        dresidual = torch.empty_like(dx) if self.has_residual and is_another else None
        self._call_backward(
            "input_gradient", kept, saved, dx=address(dx), dresidual=address(dresidual), summed=address(summed), n=address(saved.n)
        )
        return dx, kept if dresidual is None else dresidual

    def _call_backward(self, name: str, dy: Tensor, saved: Saved, **fields: Any) -> None:
        laid_out, inside = None if saved.residual is None else _laid_out(saved.residual, saved.x), _dense(saved.mask)
        self._call(
            name,
            x=address(saved.x),
            dy=address(dy),
            residual=address(laid_out),
            mask=address(inside),
            weight=address(saved.weight),
            weight_type=type_of(saved.weight),
            mean=address(saved.mean),
            invstd=address(saved.invstd),
            rounded=address(saved.rounded),
            **fields,
        )

    def _call(self, name: str, **fields: Any) -> None:
        """Call a pass. Its tensors must be held by the caller: what is handed over are addresses."""
        is_planes, N, C, S = self.lines
        batch = library.Batch(
            N=N, C=C, S=S, is_planes=is_planes, activation=library.number_of(self.activation), num_threads=torch.get_num_threads(), **fields
        )
        getattr(self.passes, name)(ctypes.byref(batch))


def _laid_out(values: Tensor, x: Tensor) -> Tensor:
    """The values with the dtype and the strides of x."""
    fits = values.stride() == x.stride() and values.dtype == x.dtype
    return values if fits else torch.empty_like(x).copy_(values)


def _dense(mask: Tensor | None) -> Tensor | None:
    """A mask (N, 1, *spatial), one place after the other in memory."""
    return None if mask is None else mask.contiguous()
