"""What a layer computes over two steps on several ranks, against a plain float64 reference of one process over the whole batch.

Used by the tests of each kind: `steps_on_ranks` runs as a program, `errors_against` compares what its ranks returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syncbn import build_norm
from tests.syncbn.oracle import error

SIZES = (3, 0, 4)
C = 5


def data(step: int, num_samples: int, spatial: tuple[int, ...], *, masked: bool = False) -> tuple[Tensor, Tensor]:
    """The whole batch of a step and its output gradient, float64; with a mask, x is NaN outside it."""
    generator = torch.Generator().manual_seed(step)
    shape = (num_samples, C, *spatial)
    x, dy = torch.randn(shape, generator=generator).double() * 2 + 3, torch.randn(shape, generator=generator).double()
    if masked:
        valid = torch.rand((num_samples, 1, *spatial), generator=generator) < 0.6
        valid[0] = False  # a sample that is padding throughout
        x = torch.where(valid, x, torch.nan)
    return x, dy


def valid_in(x: Tensor) -> Tensor:
    """The mask (N, *spatial) of a masked batch."""
    return ~x.detach()[:, 0].isnan()


def filled(layer: nn.Module) -> nn.Module:
    """The same layer with parameters worth testing, a function of their names and shapes."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for _, parameter in sorted(layer.named_parameters()):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return layer


def steps_on_ranks(  # noqa: PLR0917  a program's arguments travel in order
    rank: int, world_size: int, kind: str, options: dict[str, Any], spatial: tuple[int, ...], masked: bool = False
) -> dict[str, Tensor]:
    """Two training steps on this rank's share (some are empty), then evaluation of it. Returns everything that came out."""
    layer = filled(build_norm(kind, C, dtype=torch.float64, **options))
    sizes = SIZES[:world_size] if world_size > 1 else (sum(SIZES),)
    share = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    out: dict[str, Tensor] = {}
    for step in range(2):
        x, dy = (whole[share] for whole in data(step, sum(sizes), spatial, masked=masked))
        mask = (valid_in(x),) if masked else ()
        x.requires_grad_()
        layer.zero_grad()
        y = layer(x, *mask)
        y.backward(dy)
        out |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
        out |= {f"d{name}{step}": p.grad for name, p in layer.named_parameters()}
    out |= {name: b for name, b in layer.named_buffers() if "running" in name}
    with torch.no_grad():
        x = data(9, sum(sizes), spatial, masked=masked)[0][share]
        out["eval"] = layer.eval()(x, *((valid_in(x),) if masked else ()))
    return out


Reference = Callable[[Tensor, dict[str, Tensor], dict[str, Tensor], bool], Tensor]
"""From x, the parameters by name, the state (changed in place) and whether it is training, to y."""


def whole_batch(
    reference: Reference, layer: nn.Module, num_samples: int, spatial: tuple[int, ...], *, masked: bool = False
) -> dict[str, Tensor]:
    """What `steps_on_ranks` ought to return for the whole batch, by a plain formula differentiated by autograd."""
    parameters = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    state = {"running_mean": torch.zeros(C).double(), "running_var": torch.ones(C).double(), "step": torch.zeros(())}
    out: dict[str, Tensor] = {}
    for step in range(2):
        x, dy = data(step, num_samples, spatial, masked=masked)
        x.requires_grad_()
        y = reference(x, parameters, state, True)
        grads = torch.autograd.grad(y, [x, *parameters.values()], dy, allow_unused=True)
        out |= {f"y{step}": y.detach(), f"dx{step}": grads[0]}
        out |= {
            f"d{name}{step}": torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), grads[1:], strict=True)
        }
        state["step"] += 1
    out |= {name: state[name] for name in ("running_mean", "running_var")}
    with torch.no_grad():
        out["eval"] = reference(data(9, num_samples, spatial, masked=masked)[0], parameters, state, False)
    return out


def errors_against(wanted: dict[str, Tensor], results: list[dict[str, Tensor]]) -> dict[str, float]:
    """Largest relative error by name: outputs laid together over ranks, parameter gradients added up, running statistics on each rank."""
    names = results[0].keys() | wanted.keys()
    together = {
        name: [torch.cat([r[name] for r in results])]
        if name.startswith(("y", "dx", "eval"))
        else [sum(r[name] for r in results)]
        if name.startswith("d")
        else [r[name] for r in results]
        for name in names
    }
    return {name: max(error(value, wanted[name]) for value in values) for name, values in together.items()}


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """Shaped to broadcast over x (N, C, *spatial)."""
    return vector.view(1, -1, *([1] * (x.dim() - 2)))


def moved(state: dict[str, Tensor], x: Tensor, momentum: float = 0.1) -> None:
    """Move the running statistics by the batch x, with the unbiased variance."""
    rows = x.detach().movedim(1, -1).flatten(0, -2)
    state["running_mean"] = (1 - momentum) * state["running_mean"] + momentum * rows.mean(0)
    state["running_var"] = (1 - momentum) * state["running_var"] + momentum * rows.var(0)
