"""The other kinds that synchronize under activation checkpointing and accumulated gradients: as SyncBatchNorm."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncbn import accumulated_statistics, build_norm
from syncbn.recomputation import _FIRST_PASSES
from tests.syncbn.norms.oracles import filled
from tests.syncbn.reductions import counted_reductions

KINDS = {
    "batch_renorm": {"r_max": 1.5, "d_max": 0.8, "start": 0, "r_end": 3, "d_end": 3},  # clipping that changes with every step
    "switchable": {},
}


# These hand their calls on to a SyncBatchNorm.
WRAPPED = {"domain_bn": {"domains": ("day", "night")}, "conditional_bn": {"num_classes": 3}}


class Net(nn.Module):
    """One layer used in two segments, with a mask in the second."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm = filled(build_norm(kind, 3, momentum=0.5, dtype=torch.float64, **(KINDS | WRAPPED)[kind]))
        self.has_condition = kind == "conditional_bn"

    def normalize(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The layer, with classes 0, 1, 2, 0, ... where it needs some."""
        return self.norm(x, torch.arange(x.shape[0]) % 3, mask) if self.has_condition else self.norm(x, mask)

    def forward(self, x: Tensor, reentrant: bool | None) -> Tensor:
        """Both segments, checkpointed or (None) not."""
        mask = torch.rand((x.shape[0], 4), generator=torch.Generator().manual_seed(1)) < 0.8
        for segment in (lambda x: self.normalize(x).tanh() * 2, lambda x: self.normalize(x, mask).sigmoid()):
            x = segment(x) if reentrant is None else checkpoint(segment, x, use_reentrant=reentrant)
        return x


def share(rank: int, step: int) -> Tensor:
    """Uneven shares; the third rank's is empty."""
    return torch.randn((5, 2, 0)[rank], 3, 4, generator=torch.Generator().manual_seed(10 * step + rank), dtype=torch.float64) + step


def trained(rank: int, world_size: int, kind: str, reentrant: bool | None, needs_dx: bool) -> tuple[list[Tensor], int]:
    """Three steps: everything that comes out, and the number of reductions."""
    net, out = Net(kind), []
    with counted_reductions() as reductions:
        for step in range(3):
            x = share(rank, step).requires_grad_(needs_dx)
            y = net(x, reentrant)
            net.zero_grad()
            y.square().sum().backward()
            out += [y.detach(), *([x.grad] if needs_dx else []), *(p.grad.clone() for p in net.parameters())]
    return [*out, *net.buffers()], len(reductions)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(
    ("kind", "reentrant", "needs_dx"),
    [
        (kind, *variant)
        for kind in [*KINDS, *WRAPPED]
        for variant in [(True, True), (False, True), (False, False)]
        if kind != "conditional_bn" or variant[1]
    ],  # without an affine part no gradient would reach the statistics: they are sent again
)
def test_as_without_checkpoints_and_nothing_more_is_sent(ranks, world_size, kind, reentrant, needs_dx) -> None:
    """Outputs, gradients, running statistics and num_batches_tracked, though the statistics have moved before the recomputation."""
    plain, checkpointed = (ranks.run(world_size, trained, kind, variant, needs_dx) for variant in (None, reentrant))
    for (wanted, wanted_reductions), (found, reductions) in zip(plain, checkpointed, strict=True):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        assert reductions == wanted_reductions
        assert (reductions > 0) == (world_size > 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_nothing_is_kept_past_its_graph(kind, reentrant) -> None:
    """What a recomputation might ask for goes with the graph."""
    net = Net(kind)
    for _ in range(3):
        net(share(0, 0).requires_grad_(), reentrant)
    gc.collect()
    assert not [ref for ref in _FIRST_PASSES.get(net.norm, ()) if ref() is not None]


def accumulated(rank: int, world_size: int, kind: str) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Three micro-batches, one of them empty here, in a block: buffers, those after one batch of all ranks' values, and reductions."""
    batches = [share(rank, 0), share((rank + 1) % 3, 1), share((rank + 2) % 3, 2)]
    net, plain = (filled(build_norm(kind, 3, momentum=0.5, dtype=torch.float64, **KINDS[kind])) for _ in range(2))
    counts = []
    for layer in (net, plain):
        with counted_reductions() as reductions:
            if layer is net:
                with accumulated_statistics(layer):
                    ys = [layer(x.requires_grad_()) for x in batches]
            else:
                ys = [layer(x.requires_grad_()) for x in batches]
            sum(y.sum() for y in ys).backward()
        counts.append(len(reductions))
    gathered: list[list[Tensor]] = [[] for _ in range(world_size)]
    if world_size > 1:
        dist.all_gather_object(gathered, [x.detach() for x in batches])
    else:
        gathered = [[x.detach() for x in batches]]
    alone = nn.BatchNorm1d(3, momentum=0.5, dtype=torch.float64)
    alone(torch.cat([x for theirs in gathered for x in theirs]))
    return list(net.buffers()), list(alone.buffers()), counts


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_statistics_move_once(ranks, world_size, kind) -> None:
    """By the moments of all micro-batches of all ranks, as one large batch would move them; nothing more is sent."""
    for found, wanted, (with_block, without) in ranks.run(world_size, accumulated, kind):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert with_block == without == (0 if world_size == 1 else 6)
