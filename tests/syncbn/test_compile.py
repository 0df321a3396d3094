"""torch.compile with fullgraph: one graph, the same numbers, the same collectives."""

from __future__ import annotations

import pytest
import torch

from syncbn import SyncBatchNorm
from tests.syncbn.oracle import Case, error, expected


def compiled(rank: int, world_size: int, momentum: float | None) -> list[float]:
    """Forward and backward of a compiled layer against the oracle; the graph is run by ATen, as Inductor takes long to start."""
    case = Case(split="uneven", dtype=torch.float32, options={"momentum": momentum})
    x, dy, mask = case.data(world_size, 0)
    share = case.share(rank, world_size)
    layer = SyncBatchNorm(case.C, momentum=momentum)
    weight, bias = case.parameters()
    layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    wanted = expected(x, dy, weight, bias, mask)
    mine = x[share].clone().requires_grad_()
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(mine)
    y.backward(dy[share])
    factor = 1.0 if momentum is None else momentum
    assert int(layer.num_batches_tracked) == 1
    return [error(y, wanted.y[share]), error(mine.grad, wanted.dx[share]), error(layer.running_mean, factor * wanted.mean)]


@pytest.mark.ranks
@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles_into_one_graph(ranks, momentum) -> None:
    """Without a break, momentum=None included, across ranks."""
    assert max(max(errors) for errors in ranks.run(2, compiled, momentum)) < 1e-5
