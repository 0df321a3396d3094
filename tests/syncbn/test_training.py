"""The layer where it is used: in models, under DistributedDataParallel, autocast and averaging, over many steps.

What other projects test on GPUs, or have been told by their users, on processes of a CPU.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn

import syncbn
from syncbn import SyncBatchNorm
from tests.syncbn.oracle import error

SIZES = (3, 1, 4)


def share(rank: int, world_size: int) -> slice:
    """Uneven shares of a batch."""
    return slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]) if rank < world_size - 1 else None)


def network() -> nn.Sequential:
    """Convolutions, norms whose results are changed in place, and a norm over features."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()),
        *(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)),
    ).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """A whole batch and its targets."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(sum(SIZES), 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (sum(SIZES),), generator=generator)


def five_steps(rank: int, world_size: int) -> list[float]:
    """Errors of all parameters and buffers after five steps of SGD with momentum."""
    plain = network()
    model = DistributedDataParallel(syncbn.convert_sync_batchnorm(copy.deepcopy(plain)), broadcast_buffers=False)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (plain, model)]
    for step in range(5):
        x, target = batch(step)
        mine = share(rank, world_size)
        nn.functional.cross_entropy(plain(x), target).backward()
        (nn.functional.cross_entropy(model(x[mine]), target[mine], reduction="sum") * world_size / len(x)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(model.module.state_dict().values(), plain.state_dict().values(), strict=True)
    return [error(found.double(), wanted.double()) for found, wanted in pairs]


@pytest.mark.ranks
def test_five_steps_of_ddp_are_those_of_one_process(ranks) -> None:
    """Parameters and buffers after training with uneven shares (torch's DistributedDataParallel_SyncBatchNorm tests, with values)."""
    assert max(max(errors) for errors in ranks.run(3, five_steps)) < 1e-9


def a_hundred_batches(rank: int, world_size: int) -> tuple[float, float]:
    """Errors of the cumulative running statistics after batches whose sizes differ by rank and step."""
    layer, seen = SyncBatchNorm(3, momentum=None, unbiased_running_var=False, dtype=torch.float64), []
    for step in range(100):
        generator = torch.Generator().manual_seed(step)
        sizes = torch.randint(0, 4, (world_size,), generator=generator).clamp(min=int(step % world_size == 0)).tolist()
        sizes[step % world_size] += 1
        x = torch.randn(sum(sizes), 3, 2, generator=generator, dtype=torch.float64) * (1 + step / 50) + step / 10
        layer(x.split(sizes)[rank])
        seen.append(x.movedim(1, -1).reshape(-1, 3))
    mean = torch.stack([rows.mean(0) for rows in seen]).mean(0)
    var = torch.stack([rows.var(0, correction=0) for rows in seen]).mean(0)
    return error(layer.running_mean, mean), error(layer.running_var, var)


@pytest.mark.ranks
def test_running_statistics_do_not_wander_off(ranks) -> None:
    """A hundred batches of changing sizes, empty ones among them (torch's Diff_Input_Sizes_Running_Value)."""
    results = ranks.run(3, a_hundred_batches)
    assert max(map(max, results)) < 1e-12
    assert results[0] == results[1] == results[2]


def two_forwards(rank: int, world_size: int) -> list[Tensor]:
    """Two forwards and one backward under DDP, which copies rank 0's buffers into all others' before each."""
    model = DistributedDataParallel(syncbn.convert_sync_batchnorm(network()), broadcast_buffers=True)
    mine = share(rank, world_size)
    (model(batch(0)[0][mine]).square().sum() + model(batch(1)[0][mine]).square().sum()).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.ranks
def test_two_forwards_before_a_backward_under_ddp(ranks) -> None:
    """Buffers written in between are no part of the graph (pytorch#175024): the gradients are those of one process."""
    plain = network()
    sum(plain(batch(step)[0]).square().sum() for step in range(2)).backward()
    for found in ranks.run(2, two_forwards):
        for grad, parameter in zip(found, plain.parameters(), strict=True):
            torch.testing.assert_close(grad * 2, parameter.grad, rtol=1e-9, atol=1e-9)


def evaluate_between(rank: int, world_size: int) -> Tensor:
    """Training, evaluation on rank 0 alone in the same DDP, and training again."""
    model = DistributedDataParallel(syncbn.convert_sync_batchnorm(network()), broadcast_buffers=False)
    mine = share(rank, world_size)
    model(batch(0)[0][mine]).sum().backward()
    if rank == 0:
        with torch.no_grad():
            model.eval()(batch(1)[0])
        model.train()
    model(batch(2)[0][mine]).sum().backward()
    return torch.cat([b.double().flatten() for b in model.buffers()])


@pytest.mark.ranks
def test_one_rank_may_evaluate_between_steps(ranks) -> None:
    """Nobody waits for it (pytorch#48988, #113620), and the statistics stay those of all."""
    first, second = ranks.run(2, evaluate_between)
    assert torch.equal(first, second)


def deep(rank: int, world_size: int, dtype: torch.dtype) -> tuple[float, float]:
    """Errors of output and input gradient behind sixty norms with a bend after each."""

    def stack(kind: type[nn.Module], dtype: torch.dtype) -> nn.Sequential:
        return nn.Sequential(*(layer for _ in range(60) for layer in (kind(3, dtype=dtype), nn.SiLU())))

    x = batch(0)[0][:, :, :3].reshape(-1, 3, 10)
    x = x[: len(x) // world_size * world_size].requires_grad_()
    wanted = stack(nn.BatchNorm1d, torch.float64)(x)
    wanted.square().sum().backward()
    mine = x.detach().chunk(world_size)[rank].to(dtype).requires_grad_()
    y = stack(SyncBatchNorm, dtype)(mine)
    y.square().sum().backward()
    return error(y.detach(), wanted.detach().chunk(world_size)[rank]), error(mine.grad, x.grad.chunk(world_size)[rank])


@pytest.mark.ranks
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_sixty_layers_do_not_add_up_errors(ranks, dtype, bound) -> None:
    """A deep stack stays with one process (apex tests its kernel so)."""
    assert max(map(max, ranks.run(2, deep, dtype))) < bound


def autocast(rank: int, world_size: int) -> tuple[torch.dtype, list[Tensor]]:
    """A step in bfloat16 autocast in which rank 1 has no sample: the dtype of the norm's output, and parameter gradients."""
    model = syncbn.convert_sync_batchnorm(network().float())
    kinds = []
    model[1].register_forward_hook(lambda _, inputs, y: kinds.append(y.dtype))
    x = batch(0)[0].float()[: 0 if rank else None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().sum()
    loss.backward()
    dist.all_reduce(torch.zeros(1))
    return kinds[0], [p.grad for p in model.parameters()]


@pytest.mark.ranks
def test_autocast_with_an_empty_rank(ranks) -> None:
    """Half inputs and float32 parameters (pytorch#96203); the rank without samples sends what the others do, and has gradients of 0."""
    (full_dtype, full), (empty_dtype, empty) = ranks.run(2, autocast)
    alone = syncbn.convert_sync_batchnorm(network().float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = alone(batch(0)[0].float()).float().square().sum()
    loss.backward()
    assert full_dtype == empty_dtype == torch.bfloat16
    assert not any(grad.any() for grad in empty)
    for grad, parameter in zip(full, alone.parameters(), strict=True):
        assert error(grad, parameter.grad, scale=1.0) < 0.05


def needing(rank: int, world_size: int, wanted: tuple[bool, bool, bool]) -> list[Tensor | None]:
    """Gradients of x, weight and bias where only some are needed."""
    layer = SyncBatchNorm(2, dtype=torch.float64)
    x = batch(0)[0][share(rank, world_size)].clone()
    tensors = (x, layer.weight, layer.bias)
    for tensor, needs in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(needs)
    (layer(x) * batch(1)[0][share(rank, world_size)]).sum().backward()
    return [tensor.grad for tensor in tensors]


@pytest.mark.ranks
def test_what_needs_no_gradient_costs_the_others_nothing(ranks) -> None:
    """Frozen parameters, and a first layer whose input needs no gradient (Paddle#67182): what remains is the same."""
    whole = ranks.run(2, needing, (True, True, True))
    for wanted in [(True, False, False), (False, True, True), (True, True, False), (False, False, True)]:
        for found, complete in zip(ranks.run(2, needing, wanted), whole, strict=True):
            for grad, other, needs in zip(found, complete, wanted, strict=True):
                assert (grad is None) if not needs else torch.equal(grad, other)


def saved_bytes(rank: int, world_size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes kept for backward by the layer, and those of its input."""
    layer, kept = SyncBatchNorm(8), []
    x = torch.randn(4, 8, 32, 32, dtype=dtype).requires_grad_()

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(kept), x.untyped_storage().nbytes()


@pytest.mark.ranks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_input_is_kept_for_backward(ranks, dtype) -> None:
    """As local normalization does; no second tensor of the input's size, and none in float32 for half types (mmcv keeps one)."""
    for kept, own in ranks.run(2, saved_bytes, dtype):
        assert own <= kept <= own + 1000


def averaged(rank: int, world_size: int) -> list[Tensor]:
    """An average of models whose layers hold a process group, its statistics estimated by torch's own function."""
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), dist.new_group([0, 1]))
    average = AveragedModel(model)
    average.update_parameters(model)
    batches = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    update_bn([x.chunk(world_size)[rank] for x in batches], average)
    layer = average.module[1]
    assert layer.process_group is model[1].process_group
    assert layer.momentum == 0.1
    wanted = torch.stack([average.module[0](x).detach().mean(0) for x in batches]).mean(0)
    return [layer.running_mean, wanted]


@pytest.mark.ranks
def test_averaged_models_work(ranks) -> None:
    """Deep copies with a group (mmengine#1664), and torch.optim.swa_utils.update_bn over all ranks (contrib swa#22)."""
    for found, wanted in ranks.run(2, averaged):
        torch.testing.assert_close(found, wanted)
