"""The watches of a model's reductions, one within the other, over checkpoints: each sees its part, and none changes anything."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncbn import accumulated_statistics, build_norm, order_checks, telemetry
from tests.syncbn.reductions import counted_reductions

WATCHES = {
    "accumulated": accumulated_statistics,
    "telemetry": telemetry,
    "order": lambda model: order_checks(model, timeout_s=20.0),
}


def model(kind: str) -> nn.Sequential:
    """Two layers with something between them."""
    torch.manual_seed(0)
    return nn.Sequential(build_norm(kind, 3), nn.Linear(3, 3), build_norm(kind, 3)).double()


def step(net: nn.Sequential, rank: int, reentrant: bool | None) -> list[Tensor]:
    """Two micro-batches, forward and backward; outputs and gradients."""
    results = []
    for call in range(2):
        x = torch.randn(3 + rank, 3, generator=torch.Generator().manual_seed(10 * rank + call), dtype=torch.float64).requires_grad_()
        y = net(x) if reentrant is None else checkpoint(net, x, use_reentrant=reentrant)
        y.square().sum().backward()
        results += [y.detach(), x.grad]
    return results + [p.grad for p in net.parameters()]


def together(rank: int, world_size: int, kind: str, order: tuple[str, ...], reentrant: bool) -> tuple[float, bool, list[int], int, int]:
    """Largest difference to the plain step, equal reductions, batches tracked, telemetry's calls; and groups that are not None after."""
    plain, net = model(kind), model(kind)
    with counted_reductions() as wanted_reductions:
        wanted = step(plain, rank, None)
    with counted_reductions() as reductions, contextlib.ExitStack() as stack:
        yielded = {name: stack.enter_context(WATCHES[name](net)) for name in order}
        found = step(net, rank, reentrant)
    difference = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    tracked = [int(layer.num_batches_tracked) for layer in (net[0], net[2])]
    calls = sum(each.num_calls for each in yielded["telemetry"].read().values())
    left = sum(layer.process_group is not None or bool(layer._forward_hooks or layer._forward_pre_hooks) for layer in (net[0], net[2]))
    return difference, len(reductions) == len(wanted_reductions), tracked, calls, left


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["sync_bn", "batch_renorm", "switchable"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("order", [("accumulated", "telemetry", "order"), ("order", "telemetry", "accumulated")], ids="-".join)
def test_all_at_once(ranks, kind, order, reentrant) -> None:
    """In either order: the same numbers, the same reductions, one update, four calls, and no trace."""
    for difference, same_reductions, tracked, calls, left in ranks.run(2, together, kind, order, reentrant):
        assert difference < 1e-12
        assert same_reductions
        assert tracked == [1, 1]
        assert calls == 4
        assert left == 0
