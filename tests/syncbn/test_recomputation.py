"""Stock activation checkpointing: everything as without it, and the recomputation sends and moves nothing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

import syncbn
from syncbn import SyncBatchNorm, accumulated_statistics, sync_batch_norm
from syncbn.recomputation import _FIRST_PASSES
from tests.syncbn.reductions import counted_reductions

STATE = ("running_mean", "running_var", "num_batches_tracked")


class Net(nn.Module):
    """Two normalized layers, the first of them used twice; run by one of the plans below."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (SyncBatchNorm(3, dtype=torch.float64) for _ in range(2))
        self.mix = nn.Conv1d(3, 3, 1, dtype=torch.float64)
        self.drop = nn.Dropout(0.3)

    def body(self, x: Tensor) -> Tensor:
        """Use the first layer twice and the second once."""
        return self.second(self.drop(self.mix(self.first(self.mix(self.first(x)).relu()))))


Run = Callable[[Net, Tensor, bool | None], Tensor]


def whole(net: Net, x: Tensor, reentrant: bool | None) -> Tensor:
    """All in one segment."""
    return net.body(x) if reentrant is None else checkpoint(net.body, x, use_reentrant=reentrant)


def segments(net: Net, x: Tensor, reentrant: bool | None) -> Tensor:
    """Two segments that share all layers."""
    return whole(net, whole(net, x, reentrant).tanh(), reentrant)


def nested(net: Net, x: Tensor, reentrant: bool | None) -> Tensor:
    """A segment within a segment, with a layer before and after."""

    def outer(x: Tensor) -> Tensor:
        return net.second(whole(net, net.first(x) * 2, reentrant))

    return outer(x) if reentrant is None else checkpoint(outer, x, use_reentrant=reentrant)


def mixed(net: Net, x: Tensor, reentrant: bool | None) -> Tensor:
    """The other variant within."""

    def outer(x: Tensor) -> Tensor:
        return net.second(whole(net, net.first(x) * 2, None if reentrant is None else not reentrant))

    return outer(x) if reentrant is None else checkpoint(outer, x, use_reentrant=reentrant)


def sequential(net: Net, x: Tensor, reentrant: bool | None) -> Tensor:
    """By `checkpoint_sequential`."""
    layers = [net.first, net.mix, net.first, nn.ReLU(), net.second]  # a list: of an nn.Sequential it would drop the second use
    return nn.Sequential(*layers)(x) if reentrant is None else checkpoint_sequential(layers, 2, x, use_reentrant=reentrant)


PLANS = {plan.__name__: plan for plan in (whole, segments, nested, mixed, sequential)}


def step(net: Net, plan: str, reentrant: bool | None, x: Tensor, *, backwards: int = 1) -> list[Tensor]:
    """One step; output, all gradients and all buffers."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = PLANS[plan](net, x, reentrant)
    for k in range(backwards):
        (y * y).sum().backward(retain_graph=k + 1 < backwards)
    return [y.detach(), x.grad, *(p.grad for p in net.parameters()), *net.buffers()]


def share(rank: int) -> Tensor:
    """Uneven shares; the third rank's is empty."""
    return torch.randn((5, 2, 0)[rank], 3, 4, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def compared(rank: int, world_size: int, plan: str, variant: tuple[bool, bool], backwards: int) -> tuple[float, int, int]:
    """Largest difference from the step without checkpoints, and the reductions of both."""
    plain, net, (reentrant, early_stop) = Net(), Net(), variant
    with counted_reductions() as wanted_reductions:
        wanted = step(plain, plan, None, share(rank), backwards=backwards)
    with counted_reductions() as reductions, set_checkpoint_early_stop(early_stop):
        found = step(net, plan, reentrant, share(rank), backwards=backwards)
    differences = [float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True) if b.numel()]
    return max(differences), len(reductions), len(wanted_reductions)


@pytest.mark.ranks
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("reentrant", "early_stop"), [(True, True), (False, True), (False, False)])
def test_as_without_checkpoints_and_nothing_more_is_sent(ranks, plan, reentrant, early_stop) -> None:
    """Outputs, gradients, running statistics and num_batches_tracked; the number of reductions; over two ranks."""
    for difference, reductions, wanted in ranks.run(2, compared, plan, (reentrant, early_stop), 1):
        assert difference < 1e-12
        assert reductions == wanted > 0


@pytest.mark.ranks
@pytest.mark.parametrize("reentrant", [True, False])
def test_an_empty_rank_and_two_backwards(ranks, reentrant) -> None:
    """A rank without samples recomputes too; a graph that is kept can be recomputed again."""
    for difference, reductions, wanted in ranks.run(3, compared, "segments", (reentrant, True), 2):
        assert difference < 1e-12
        assert reductions == wanted > 0


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # of a segment within one that runs without grad
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_alone_the_statistics_move_once_too(plan, reentrant) -> None:
    """Without a process group: the same, but for the order in which torch adds up the gradients of nested backwards."""
    plain, net = Net(), Net()
    wanted, found = step(plain, plan, None, share(0)), step(net, plan, reentrant, share(0))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, net.buffers(), plain.buffers()))


def accumulated(rank: int, world_size: int, reentrant: bool) -> float:
    """Largest difference of buffers with checkpoints from those without, both within a block of accumulated statistics."""
    buffers = []
    for variant in (None, reentrant):
        net = Net()
        with accumulated_statistics(net):
            for shift in (0.0, 1.0):
                step(net, "segments", variant, share(rank) + shift)
        buffers.append(list(net.buffers()))
    assert int(net.first.num_batches_tracked) == 1
    return max(float((a - b).abs().max()) for a, b in zip(*buffers, strict=True))


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("reentrant", [True, False])
def test_accumulated_statistics_count_a_recomputation_once(ranks, world_size, reentrant) -> None:
    """Within the block, too, a recomputation enters nothing."""
    assert max(ranks.run(world_size, accumulated, reentrant)) < 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
def test_local_layers_count_once_within_accumulated_statistics(reentrant) -> None:
    """Layers of torch move twice under a checkpoint (pytorch#96136), but not inside the block."""
    results = []
    for variant in (None, reentrant):
        layer = nn.BatchNorm1d(3, dtype=torch.float64)
        x = share(0).requires_grad_()
        with accumulated_statistics(layer):
            y = layer(x).relu() if variant is None else checkpoint(lambda x, layer=layer: layer(x).relu(), x, use_reentrant=variant)
            (y * y).sum().backward()
        results.append([*layer.buffers(), x.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def first_passes_alive(net: Net) -> int:
    """How many first passes of a model could still be recomputed, once the cycles that torch's checkpoints now and then make are gone.

    What a graph holds becomes garbage only when the graph is gone, and may be in cycles of its own: what is left after one collection, the
    next finds.
    """
    for _ in range(5):
        gc.collect()
    return sum(ref() is not None for layer in (net.first, net.second) for ref in _FIRST_PASSES.get(layer, ()))


def forgotten(rank: int, world_size: int, reentrant: bool | None) -> list[int]:
    """First passes alive: after a forward, after the output is dropped, after many forwards without backward, and without grad."""
    net, counts = Net(), []
    x = share(rank).requires_grad_()
    y = segments(net, x, reentrant)
    counts.append(first_passes_alive(net))
    del y
    counts.append(first_passes_alive(net))
    for _ in range(10):
        segments(net, x, reentrant)
    counts.append(first_passes_alive(net))
    with torch.no_grad():
        segments(net, x, None)
    counts.append(first_passes_alive(net))
    counts.append(len(_FIRST_PASSES.get(net.first, ())))
    return counts


@pytest.mark.ranks
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_what_no_backward_will_ask_for_is_forgotten(ranks, reentrant) -> None:
    """A first pass lives as long as its graph; without grad it is not kept at all."""
    for alive, dropped, repeated, without_grad, references in ranks.run(2, forgotten, reentrant):
        assert alive == 6
        assert dropped == repeated == without_grad == 0
        assert references <= 44 if reentrant is False else references <= 4


def nondeterministic(rank: int, world_size: int) -> str:
    """A checkpointed function that computes something else the second time, with two first passes to choose from."""
    net = Net()
    calls = []

    def body(x: Tensor) -> Tensor:
        calls.append(1)
        return net.first(x * len(calls)).square()

    x = share(rank).requires_grad_()
    y = checkpoint(body, x, use_reentrant=False) + checkpoint(body, x, use_reentrant=False)
    with contextlib.suppress(syncbn.RecomputationError):
        y.sum().backward()
        return "nothing"
    return "refused"


def frozen_and_shared(rank: int, world_size: int) -> str:
    """A layer used twice of which only the second use is kept: no gradient reaches the first, whose input and parameters need none."""
    net = Net()
    net.first.requires_grad_(requires_grad=False)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    y = checkpoint(lambda x: net.first(net.first(x).tanh() * scale).square(), share(rank), use_reentrant=False)
    try:
        y.sum().backward()
    except syncbn.RecomputationError as refusal:
        return str(refusal)
    return "nothing"


@pytest.mark.ranks
def test_the_only_first_pass_is_not_taken_for_another(ranks) -> None:
    """A call that was not kept is not normalized by the statistics of the one that was: the error says what to do."""
    for told in ranks.run(2, frozen_and_shared):
        assert "none of the layer's 1 first passes had" in told
        assert "keep calls to which no gradient reaches out of the checkpoint" in told


@pytest.mark.ranks
def test_an_ambiguous_recomputation_is_refused(ranks) -> None:
    """Rather than normalized by the statistics of another call."""
    assert ranks.run(2, nondeterministic) == ["refused", "refused"]


def functional(rank: int, world_size: int, with_owner: bool) -> tuple[int, float]:
    """The function under a checkpoint: reductions in forward and backward, and how far the running mean is from one update."""
    running_mean, running_var = torch.zeros(3).double(), torch.ones(3).double()
    x = share(rank).requires_grad_()
    owner = Net() if with_owner else None

    def body(x: Tensor) -> Tensor:
        return sync_batch_norm(x, running_mean, running_var, training=True, momentum=0.5, owner=owner).square()

    with counted_reductions() as reductions:
        y = checkpoint(body, x, use_reentrant=False)
        once = running_mean.clone()
        y.sum().backward()
    return len(reductions), float((running_mean - once).abs().max())


@pytest.mark.ranks
@pytest.mark.parametrize(("with_owner", "wanted"), [(True, 2), (False, 3)])
def test_the_function_needs_an_owner_to_remember(ranks, with_owner, wanted) -> None:
    """With an owner nothing more is sent; without one it sends again; the statistics move once in either case."""
    assert ranks.run(2, functional, with_owner) == [(wanted, 0.0)] * 2
