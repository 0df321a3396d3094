"""Running statistics under gradient accumulation: one update per block, by the merged moments of all its calls."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch import nn

import syncbn
from syncbn import SyncBatchNorm, accumulated_statistics
from syncbn.local import BatchNorm
from syncbn.norms.ghost import GhostBatchNorm
from tests.syncbn.reductions import counted_reductions

STATE = ("running_mean", "running_var", "num_batches_tracked")


def micro_batches(rank: int = 0, *, kind: torch.dtype = torch.float64, count: int = 3) -> list[torch.Tensor]:
    """Batches of different sizes, means and spreads."""
    generator = torch.Generator().manual_seed(rank)
    sizes = [2 + rank, 5, 3]
    return [
        (torch.randn(size, 3, 4, 2, generator=generator, dtype=torch.float64) * (k + 1) + k).to(kind)
        for k, size in enumerate(sizes[:count])
    ]


def state(layer: nn.Module) -> list[torch.Tensor]:
    """Copies of the buffers."""
    return [getattr(layer, name).clone() for name in STATE]


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize(
    "kind",
    [SyncBatchNorm, BatchNorm, nn.BatchNorm2d, lambda *a, **k: SyncBatchNorm(*a, unbiased_running_var=False, **k)],
    ids=["sync", "local", "torch", "biased"],
)
def test_moves_as_by_one_large_batch(kind, momentum) -> None:
    """Two blocks of three micro-batches move the statistics as two large batches would; num_batches_tracked is 2."""
    layer, wanted = (kind(3, momentum=momentum, dtype=torch.float64) for _ in range(2))
    for shift in (0.0, 2.0):
        with accumulated_statistics(layer):
            for x in micro_batches():
                layer(x + shift)
        wanted(torch.cat(micro_batches()) + shift)
    for name in STATE:
        torch.testing.assert_close(getattr(layer, name), getattr(wanted, name), rtol=1e-12, atol=1e-12)


def test_virtual_batches_move_as_one_large_batch() -> None:
    """Normalized apart, but entered together: not the last virtual batch alone."""
    ghost, wanted = GhostBatchNorm(3, virtual_batch_size=2, dtype=torch.float64), nn.BatchNorm2d(3, dtype=torch.float64)
    with accumulated_statistics(ghost):
        for x in micro_batches():
            ghost(x)
    wanted(torch.cat(micro_batches()))
    for found, one in zip(state(ghost), state(wanted), strict=True):
        torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [SyncBatchNorm, nn.BatchNorm2d])
def test_outputs_and_gradients_are_the_same_bits(kind) -> None:
    """The block changes nothing but the running statistics, and leaves no trace on the layer."""
    plain, layer = kind(3), kind(3)
    before = set(layer.__dict__)
    results = []
    for model, block in ((plain, False), (layer, True)):
        x = micro_batches(kind=torch.float32)[0].requires_grad_()
        if block:
            with accumulated_statistics(model):
                y = model(x)
        else:
            y = model(x)
        (y * x).sum().backward()
        results.append((y, x.grad, model.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert set(layer.__dict__) == before
    assert layer.momentum == 0.1
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_buffers_stay_the_same_tensors() -> None:
    """Views and optimizers of averages that hold the buffers see the update: they are written in place."""
    layer = SyncBatchNorm(3, dtype=torch.float64)
    held = layer.running_mean
    with accumulated_statistics(layer):
        layer(micro_batches()[0])
        assert torch.equal(layer.running_mean, torch.zeros(3))
        assert layer.running_mean is held
    assert layer.running_mean is held
    assert not torch.equal(held, torch.zeros(3))


@pytest.mark.parametrize("kind", [SyncBatchNorm, nn.BatchNorm2d])
def test_an_exception_that_leaves_the_block_leaves_the_statistics(kind) -> None:
    """Nothing moves; after it a new block works."""
    layer = kind(3, dtype=torch.float64)
    before = state(layer)

    def failing_step() -> None:
        with accumulated_statistics(layer):
            layer(micro_batches()[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_step()
    assert all(map(torch.equal, state(layer), before))
    with accumulated_statistics(layer):
        layer(micro_batches()[0])
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("kind", [SyncBatchNorm, nn.BatchNorm2d])
def test_a_failing_forward_gives_the_buffers_back(kind) -> None:
    """A caller that catches the error in the block goes on with the layer's own buffers."""
    layer = kind(3, dtype=torch.float64)
    held = layer.running_mean
    with accumulated_statistics(layer):
        with pytest.raises((ValueError, RuntimeError)):
            layer(torch.zeros(4, 5, 2, 2).double())
        assert layer.running_mean is held
        layer(micro_batches()[0])
    wanted = kind(3, dtype=torch.float64)
    wanted(micro_batches()[0])
    torch.testing.assert_close(held, wanted.running_mean)


def test_evaluation_and_untouched_layers_stay() -> None:
    """Evaluation inside the block uses the statistics of before it; a layer that is not called in training mode does not move."""
    model = nn.ModuleList([SyncBatchNorm(3, dtype=torch.float64), nn.BatchNorm2d(3, dtype=torch.float64)])
    before = [state(layer) for layer in model]
    x = micro_batches()[0]
    with accumulated_statistics(model):
        model[0](x)
        model[0].eval()
        torch.testing.assert_close(model[0](x), x / (1 + 1e-5) ** 0.5)
        model[0].train()
    assert all(map(torch.equal, state(model[1]), before[1]))
    assert int(model[0].num_batches_tracked) == 1


def test_a_mask_counts_what_it_lets_through() -> None:
    """Masked micro-batches enter their valid values only, one with fewer than two of them nothing."""
    layer, wanted = (SyncBatchNorm(3, momentum=1.0, dtype=torch.float64) for _ in range(2))
    batches = micro_batches(count=2)
    masks = [torch.rand(x.shape[0], 4, 2, generator=torch.Generator().manual_seed(1)) < 0.6 for x in batches]
    with accumulated_statistics(layer):
        for x, mask in zip(batches, masks, strict=True):
            layer(x, mask=mask)
    wanted(torch.cat(batches), torch.cat(masks))
    torch.testing.assert_close(layer.running_var, wanted.running_var, rtol=1e-12, atol=0)


# The tracer itself makes an object of every autograd.Function, and is warned of it.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "moves"), [(SyncBatchNorm, 1), (nn.BatchNorm2d, 2)])
def test_inside_a_compiled_model(kind, moves) -> None:
    """A synchronized layer moves once, though the model was traced before the block; torch's own, whose hooks do not run, each time."""
    torch._dynamo.reset()
    layer = kind(3, dtype=torch.float64)
    model = torch.compile(nn.Sequential(nn.Identity(), layer), backend="eager")
    x = micro_batches()[0]
    model(x)
    with accumulated_statistics(layer):
        model(x)
        model(x)
    assert int(layer.num_batches_tracked) == 1 + moves


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.SyncBatchNorm(3)), "layer '0' is a torch.nn.SyncBatchNorm"),
        (nn.Sequential(SyncBatchNorm(3)), "layer '0' is in a block of accumulated_statistics already"),
    ],
)
def test_refusals_name_the_layer(model, message) -> None:
    """Torch's synchronized layer hides its count; blocks do not nest."""
    with pytest.raises(syncbn.InputError, match=message), accumulated_statistics(model), accumulated_statistics(model):
        pass
    assert "_accumulates_statistics" not in model[0].__dict__


def on_ranks(rank: int, world_size: int) -> tuple[float, int, list[int]]:
    """Uneven micro-batches, one of them empty on rank 0: error against one process, updates, and reductions with and without the block."""
    batches = micro_batches(rank)
    if rank == 0:
        batches[1] = batches[1][:0]
    plain, layer = (SyncBatchNorm(3, momentum=0.3, dtype=torch.float64) for _ in range(2))
    counts = []
    for model, block in ((plain, contextlib.nullcontext()), (layer, accumulated_statistics(layer))):
        with counted_reductions() as reductions, block:
            for x in batches:
                model(x.clone().requires_grad_()).sum().backward()
        counts.append(len(reductions))
    gathered: list[list[torch.Tensor]] = [[] for _ in range(world_size)]
    dist.all_gather_object(gathered, batches)
    alone = nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float64)
    alone(torch.cat([x for theirs in gathered for x in theirs]))
    error = max(float((getattr(layer, name) - getattr(alone, name)).abs().max()) for name in STATE)
    assert layer.process_group is None
    return error, int(layer.num_batches_tracked), counts


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 3])
def test_over_ranks_as_one_process_over_everything(ranks, world_size) -> None:
    """Global moments of all micro-batches, an empty one among them; not one reduction more."""
    for error, tracked, counts in ranks.run(world_size, on_ranks):
        assert error < 1e-12
        assert tracked == 1
        assert counts == [6, 6]
