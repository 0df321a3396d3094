"""The kernels of the compiled stages, as functions that Inductor compiles once for all sizes.

Owns: the passes as Inductor is to see them, and asking it. Does not own which batch is viewed how (`compiled.py`). The arithmetic of the
vectors is that of the eager stages (`vectors.py`).

Inductor is asked ahead of time, not through `torch.compile`, whose guards and wrappers cost about 40 us per call, four times per layer: as
much as a small layer's passes. What a guard would find out is known here: a plan fixes all but sizes, and Inductor's code asserts those.

Vectors are float64 where not said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, final

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from syncbn.activations import activation_named
from syncbn.moments import from_shifted, pack
from syncbn.running import update_
from syncbn.vectors import affine_of, factors_of, found_in, packed_gradients

_FAR = 16.0  # (shift - mean)^2 / variance beyond which the shift costs accuracy: that factor in the variance's error


class Plan(NamedTuple):
    """All that the code depends on, but for sizes larger than 1."""

    is_planes: bool
    is_tiled: bool  # elementwise views have several rows side by side
    ones: tuple[tuple[bool, ...], tuple[bool, ...]]  # which sizes of the views, for sums and elementwise, are 1
    dtype: torch.dtype
    weight: torch.dtype | None
    bias: torch.dtype | None
    running: torch.dtype | None
    unbiased: bool
    has_residual: bool
    has_mask: bool
    activation: str | None

    @property
    def reads_residual(self) -> bool:
        """Whether a backward computes the argument of the activation again, of which the residual is a part."""
        return self.has_residual and self.activation is not None

    @property
    def writes_residual(self) -> bool:
        """Whether the gradient of the residual is another one than that of the output."""
        return self.has_residual and (self.activation is not None or self.has_mask)


class Forward(NamedTuple):
    """Tensors of a forward, None where a function or a plan has no use for one."""

    x: Tensor
    y: Tensor | None = None  # to be written
    residual: Tensor | None = None
    total: Tensor | None = None  # (2C + 1,)
    weight: Tensor | None = None  # (C,), as the next four
    bias: Tensor | None = None
    running_mean: Tensor | None = None  # to be moved
    running_var: Tensor | None = None
    momentum: Tensor | None = None  # ()
    eps: Tensor | None = None  # ()
    mask: Tensor | None = None  # boolean, the shape of x but for one channel


class Backward(NamedTuple):
    """Tensors of a backward, None where a function or a plan has no use for one."""

    dy: Tensor
    x: Tensor
    rounded: Tensor  # (3, C), the accumulation dtype: mean, scale and shift
    mean: Tensor  # (C,)
    invstd: Tensor  # (C,)
    weight: Tensor | None = None  # (C,)
    residual: Tensor | None = None  # with an activation
    dx: Tensor | None = None  # to be written
    dresidual: Tensor | None = None  # to be written
    summed: Tensor | None = None  # (2C,)
    n: Tensor | None = None  # ()
    mask: Tensor | None = None  # boolean, the shape of x but for one channel


_Tensors = TypeVar("_Tensors", Forward, Backward)


class Kernels(NamedTuple):
    """The compiled functions; what they return is said in `_Passes`."""

    local_sums: Callable[[Forward], Any]
    normalize: Callable[[Forward], Any]
    gradient_sums: Callable[[Backward], Any]
    input_gradient: Callable[[Backward], Any]


def compiled_kernels(plan: Plan) -> Kernels:
    """Compile for a plan: seconds, or less where Inductor's cache on disk knows it.

    Raises:
        Exception: anything, if there is no C++ compiler or it fails, or this torch has no `standalone_compile` (before 2.8).
    """
    passes, forwards, backwards = _Passes(plan), _forward_examples(plan), _backward_examples(plan)
    return Kernels(
        _compiled(passes.local_sums, forwards[0]),
        _compiled(passes.normalize, forwards[1]),
        _compiled(passes.gradient_sums, backwards[0]),
        _compiled(passes.input_gradient, backwards[1]),
    )


def _compiled(function: Callable[[_Tensors], Any], example: _Tensors) -> Callable[[_Tensors], Any]:
    """The function compiled for sizes yet unknown. What is None in the example is None in every call."""
    import torch._inductor

    present = [name for name, tensor in example._asdict().items() if tensor is not None]

    def of_tensors(*tensors: Tensor) -> Any:
        return function(example._replace(**dict(zip(present, tensors, strict=True))))

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        graph = make_fx(of_tensors, tracing_mode="symbolic")(*(getattr(example, name) for name in present))
        inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        artifact = torch._inductor.standalone_compile(graph, inputs, dynamic_shapes="from_graph")  # noqa: SLF001

    def call(tensors: _Tensors) -> Any:
        return artifact(*[tensor for tensor in tensors if tensor is not None])

    return call


def _sizes(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Of both views, and C: usual ones, and no two equal, for equal ones would be taken for one and the same."""
    usual: tuple[tuple[int, ...], tuple[int, ...]] = ((12, 48, 5, 784), (12, 48, 5, 784))
    if not plan.is_planes:
        usual = ((20, 196, 48), (1309, 144) if plan.is_tiled else (3920, 48))
    sums, elements = (
        tuple(1 if is_one else size for size, is_one in zip(sizes, ones, strict=True)) for sizes, ones in zip(usual, plan.ones, strict=True)
    )
    return sums, elements, sums[1] if plan.is_planes else sums[2]


def _ones(*sizes: int, dtype: torch.dtype | None = torch.float64) -> Any:
    return None if dtype is None else torch.ones(sizes, dtype=dtype)


def _forward_examples(plan: Plan) -> tuple[Forward, Forward]:
    sums, elements, C = _sizes(plan)
    normalize = Forward(
        x=_ones(*elements, dtype=plan.dtype),
        y=_ones(*elements, dtype=plan.dtype),
        residual=_ones(*elements, dtype=plan.dtype) if plan.has_residual else None,
        total=_ones(2 * C + 1),
        weight=_ones(C, dtype=plan.weight),
        bias=_ones(C, dtype=plan.bias),
        running_mean=_ones(C, dtype=plan.running),
        running_var=_ones(C, dtype=plan.running),
        momentum=None if plan.running is None else _ones(),
        eps=_ones(),
        mask=_mask_example(plan, elements),
    )
    return Forward(_ones(*sums, dtype=plan.dtype), mask=_mask_example(plan, sums)), normalize


def _mask_example(plan: Plan, sizes: tuple[int, ...]) -> Tensor | None:
    if not plan.has_mask:
        return None
    return torch.ones((sizes[0], 1, *sizes[2:]) if plan.is_planes else (*sizes[:-1], 1), dtype=torch.bool)


def _backward_examples(plan: Plan) -> tuple[Backward, Backward]:
    sums, elements, C = _sizes(plan)

    def common(sizes: tuple[int, ...]) -> Backward:
        return Backward(
            dy=_ones(*sizes, dtype=plan.dtype),
            x=_ones(*sizes, dtype=plan.dtype),
            rounded=_ones(3, C, dtype=_wide(plan.dtype)),
            mean=_ones(C),
            invstd=_ones(C),
            weight=_ones(C, dtype=plan.weight),
            residual=_ones(*sizes, dtype=plan.dtype) if plan.reads_residual else None,
            mask=_mask_example(plan, sizes),
        )

    written = _ones(*elements, dtype=plan.dtype), _ones(*elements, dtype=plan.dtype) if plan.writes_residual else None
    return common(sums), common(elements)._replace(dx=written[0], dresidual=written[1], summed=_ones(2 * C), n=_ones())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@final
class _Passes:
    """The four stages as functions of views and vectors."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.wide = plan, _wide(plan.dtype)
        self.activation = None if plan.activation is None else activation_named(plan.activation)

    def local_sums(self, of: Forward) -> tuple[Tensor, Tensor]:
        """Packed moments, and whether the shift was too far from the mean for their accuracy. The shift is the mean of one block."""
        x = of.x.to(self.wide)
        first, dim = (x[0, :, 0], 1) if self.plan.is_planes else (x[0], 0)
        if of.mask is None:
            origin_C = first.mean(dim)
            n = torch.full((), x.numel() // origin_C.shape[0], dtype=torch.float64)
        else:
            valid = of.mask[0, :, 0] if self.plan.is_planes else of.mask[0]
            origin_C = torch.where(valid, first, 0).sum(dim) / valid.sum().clamp(min=1)
            n = of.mask.sum(dtype=torch.float64)
        values = self.masked(x - self.along(origin_C), of.mask)
        sum_C, squares_C = self.summed(values), self.summed(values.square())
        moments = from_shifted(n.clamp(min=1), origin_C.double(), sum_C, squares_C)._replace(n=n)
        return pack(moments), (sum_C * sum_C > _FAR / (1 + _FAR) * n * squares_C).any()

    def normalize(self, of: Forward) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, inverse deviation, and (mean, scale, shift) rounded; writes y and moves the running statistics."""
        assert of.y is not None and of.total is not None and of.eps is not None  # noqa: PT018
        moments, invstd_C = found_in(of.total, of.eps)
        if of.running_mean is not None and of.running_var is not None and of.momentum is not None:
            update_(of.running_mean, of.running_var, moments, of.momentum, unbiased=self.plan.unbiased)
        scale_C, bias_C = affine_of(invstd_C, of.weight, of.bias)
        origin_C = moments.mean.to(self.wide)
        shift_C = bias_C + (origin_C - moments.mean) * scale_C
        rounded_3C = torch.stack((origin_C, scale_C.to(self.wide), shift_C.to(self.wide)))
        z = self.argument(of.x, of.residual, self.spread(rounded_3C, of.x))
        of.y.copy_(self.masked(z if self.activation is None else self.activation.function(z), of.mask))
        return moments.mean, invstd_C, rounded_3C

    def gradient_sums(self, of: Backward) -> tuple[Tensor, Tensor, Tensor]:
        """The packed sums, and the gradients of weight and bias."""
        spread = [self.along(vector_C) for vector_C in of.rounded.unbind()]
        dz = self.argument_gradient(of, spread)
        if self.plan.is_planes:
            # Plus nothing, by channel: without it Inductor would run through the batch once for each of the two sums.
            dz = dz + self.along((of.invstd < 0).to(self.wide))
        sum_C = self.summed(dz)
        distance = self.masked(of.x.to(self.wide) - spread[0], of.mask)
        dot_C = self.summed(dz * distance) + (of.rounded[0] - of.mean) * sum_C
        return packed_gradients(sum_C, dot_C, of.weight), dot_C * of.invstd, sum_C

    def input_gradient(self, of: Backward) -> Tensor:
        """Nothing of use; writes dx and dresidual."""
        assert of.dx is not None and of.summed is not None and of.n is not None  # noqa: PT018
        a_C, b_C, c_C = factors_of(of.summed, of.n, of.invstd, of.weight)
        factors_3C = torch.stack((a_C, b_C, c_C + (of.rounded[0] - of.mean) * b_C)).to(self.wide)
        a, b, c = self.spread(factors_3C, of.x)
        spread = self.spread(of.rounded, of.x)
        dz = self.argument_gradient(of, spread)
        if of.dresidual is not None:
            of.dresidual.copy_(dz)
        of.dx.copy_(self.masked(dz * a + ((of.x.to(self.wide) - spread[0]) * b + c), of.mask))
        return factors_3C

    def argument(self, x: Tensor, residual: Tensor | None, spread: list[Tensor]) -> Tensor:
        """What the activation is applied to."""
        origin, scale, shift = spread
        z = (x.to(self.wide) - origin) * scale + shift
        return z if residual is None else z + residual.to(self.wide)

    def argument_gradient(self, of: Backward, spread: list[Tensor]) -> Tensor:
        """Its gradient, 0 outside the mask."""
        dy = of.dy.to(self.wide)
        dz = dy if self.activation is None else self.activation.gradient(dy, self.argument(of.x, of.residual, spread))
        return self.masked(dz, of.mask)

    def masked(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """0 outside the mask, whatever is there."""
        return values if mask is None else torch.where(mask, values, 0)

    def along(self, vector_C: Tensor) -> Tensor:
        """A vector as a factor of a view."""
        return vector_C[None, :, None, None] if self.plan.is_planes else vector_C

    def spread(self, vectors_3C: Tensor, x: Tensor) -> list[Tensor]:
        """Vectors as factors of an elementwise view."""
        if self.plan.is_tiled:
            # Inductor writes down what is viewed by strides; else it would take a remainder for each value of the batch.
            vectors_3C = vectors_3C.repeat(1, x.shape[1] // vectors_3C.shape[1]).as_strided((3, x.shape[1]), (x.shape[1], 1))
        return [self.along(vector) for vector in vectors_3C.unbind()]

    def summed(self, values: Tensor) -> Tensor:
        """Sums per channel: of a part or block in the accumulation dtype, of these in float64."""
        return values.sum(3).double().sum((0, 2)) if self.plan.is_planes else values.sum(1).double().sum(0)
