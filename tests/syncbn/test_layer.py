"""SyncBatchNorm on several ranks against one process over the whole batch."""

from __future__ import annotations

import copy
import pickle
from itertools import starmap

import pytest
import torch
import torch.distributed as dist
from torch import nn

import syncbn
from syncbn import SyncBatchNorm, inner_loops
from tests.syncbn.oracle import SPLITS, STATISTICS_TOLERANCES, TOLERANCES, Case, error, expected

WORLD_SIZES = [1, 2, 3, 5]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def compare(rank: int, world_size: int, case: Case) -> dict[str, float]:
    """Train some steps on this rank's share and return the largest error of everything that comes out."""
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    layer = SyncBatchNorm(case.C, dtype=wide, **case.options)
    weight, bias = case.parameters()
    if layer.affine:
        layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    else:
        weight, bias = torch.ones(case.C).double(), torch.zeros(case.C).double()
    running = torch.zeros(case.C).double(), torch.ones(case.C).double()
    errors: dict[str, float] = {}
    for step in range(case.steps):
        x, dy, mask = case.data(world_size, step)
        share = case.share(rank, world_size)
        wanted = expected(x, dy, weight, bias, mask, eps=layer.eps)
        mine = laid_out(x[share], channels_last=case.channels_last).requires_grad_()
        layer.zero_grad()
        y = layer(mine, mask[share]) if case.masked else layer(mine)
        assert y.dtype == case.dtype
        assert y.stride() == mine.stride() or y.numel() == 0
        y.backward(dy[share])
        assert mine.grad is not None
        # dx is a difference of terms as large as weight dy / std; with two values per channel it is nearly nothing.
        terms = float((weight.abs() / (wanted.var + layer.eps).sqrt()).max() * dy.abs().max())
        found = {"y": error(y, wanted.y[share]), "dx": error(mine.grad, wanted.dx[share], scale=terms if case.spatial == () else 0.0)}
        if layer.affine:
            found |= {"dweight": error(summed(layer.weight), wanted.dweight), "dbias": error(summed(layer.bias), wanted.dbias)}
        if layer.track_running_stats:
            factor = 1 / (step + 1) if layer.momentum is None else layer.momentum
            bessel = wanted.n / (wanted.n - 1) if layer.unbiased_running_var else 1.0
            running = (
                (1 - factor) * running[0] + factor * wanted.mean,
                (1 - factor) * running[1] + factor * wanted.var * bessel,
            )
            found |= {"running_mean": error(layer.running_mean, running[0]), "running_var": error(layer.running_var, running[1])}
            assert int(layer.num_batches_tracked) == step + 1
        errors = {name: max(value, errors.get(name, 0.0)) for name, value in found.items()}
    return errors


def laid_out(x: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """A copy in the wanted memory format."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.clone(memory_format=formats[x.dim()] if channels_last else torch.contiguous_format)


def summed(parameter: nn.Parameter) -> torch.Tensor:
    """A parameter's gradient over all ranks: what DistributedDataParallel averages, times the number of ranks."""
    assert parameter.grad is not None
    total = parameter.grad.clone()
    dist.all_reduce(total)
    return total


def check(errors_by_rank: list[dict[str, float]], dtype: torch.dtype) -> None:
    """Every error of every rank against the table."""
    for rank, errors in enumerate(errors_by_rank):
        for name, value in errors.items():
            bound = TOLERANCES[dtype][0] if name in {"y", "dx"} else STATISTICS_TOLERANCES[dtype]
            assert value <= bound, f"rank {rank}: {name} is off by {value:.2e}, more than {bound:.2e}"


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("world_size", "split"),
    [(world_size, split) for world_size in WORLD_SIZES for split in SPLITS if any(SPLITS[split][:world_size])],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_one_process_over_the_whole_batch(ranks, world_size, dtype, split) -> None:
    """Outputs, running statistics and all gradients are those of the whole batch, however it is cut."""
    check(ranks.run(world_size, compare, Case(split=split, dtype=dtype)), dtype)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "case",
    [
        Case(spatial=()),
        Case(spatial=(7,)),
        Case(spatial=(2, 3, 2)),
        Case(spatial=(4, 3), channels_last=True, dtype=torch.float32),
        Case(spatial=(4, 3, 2), channels_last=True, split="empty"),
        Case(C=1),
        Case(C=37, dtype=torch.float32, channels_last=True),
        Case(spatial=(65, 130), dtype=torch.float32),
        Case(spatial=(131, 67), dtype=torch.float32, channels_last=True),
        Case(split="empty", masked=True),
        Case(split="uneven", masked=True, dtype=torch.float32, spatial=(9,)),
        Case(split="uneven", masked=True, spatial=(), options={"momentum": None}),
        Case(options={"momentum": None}, steps=3),
        Case(options={"affine": False}),
        Case(options={"track_running_stats": False}),
        Case(options={"unbiased_running_var": False}),
        Case(options={"eps": 0.3, "momentum": 0.7}, split="empty"),
        Case(mean=1000.0, std=0.5),
    ],
    ids=lambda case: repr(case)[5:-1] if isinstance(case, Case) else str(case),
)
def test_every_shape_layout_and_option(ranks, world_size, case) -> None:
    """The same, over shapes, memory formats, masks and the layer's options."""
    errors = ranks.run(world_size, compare, case)
    if case.mean == 1000.0:  # rounding of the input's own magnitude: mean/std = 2000 costs 2000^2 * 2^-53 at most
        assert max(max(e.values()) for e in errors) < 1e-8
        return
    check(errors, case.dtype)


def half_precision_within_one_ulp(rank: int, world_size: int, dtype: torch.dtype, loops: str) -> int:
    """The largest distance, in units in the last place, of y from the float64 result rounded to the dtype."""
    case = Case(dtype=dtype, spatial=(16, 8), std=0.3, mean=1.0)
    x, dy, mask = case.data(world_size, 0)
    share = case.share(rank, world_size)
    layer = SyncBatchNorm(case.C)
    weight, bias = case.parameters()
    layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    with inner_loops(loops):
        y = layer(x[share])
    wanted = expected(x, dy, weight, bias, mask).y[share].to(dtype)
    return int((y.view(torch.int16).int() - wanted.view(torch.int16).int()).abs().max())


@pytest.mark.ranks
@pytest.mark.parametrize("loops", ["aten", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(ranks, dtype, loops) -> None:
    """bfloat16 and float16 outputs are the float64 result, rounded, give or take one unit in the last place."""
    assert max(ranks.run(2, half_precision_within_one_ulp, dtype, loops)) <= 1


def ill_conditioned(rank: int, world_size: int, mean: float, std: float, loops: str) -> tuple[float, float]:
    """Errors of the running variance and of y in float32 for a mean far larger than the deviation."""
    case = Case(spatial=(32, 32), mean=mean, std=std, dtype=torch.float32, C=16)
    x, dy, mask = case.data(world_size, 0)
    share = case.share(rank, world_size)
    layer = SyncBatchNorm(case.C, momentum=1.0, unbiased_running_var=False)
    wanted = expected(x, dy, torch.ones(case.C), torch.zeros(case.C), mask)
    with inner_loops(loops):
        y = layer(x[share])
    relative = ((layer.running_var.double() - wanted.var).abs() / wanted.var).max()
    return float(relative), error(y, wanted.y[share])


@pytest.mark.ranks
@pytest.mark.parametrize("loops", ["aten", "compiled"])
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (100, 1), (100, 0.1), (1000, 0.1), (0, 1e-4), (0, 1e-6)])
def test_nothing_cancels_in_float32(ranks, mean, std, loops) -> None:
    """The variance and the output keep float32's accuracy where E[x^2] - E[x]^2 has lost everything."""
    for variance_error, output_error in ranks.run(3, ill_conditioned, float(mean), std, loops):
        assert variance_error < 1e-6
        assert output_error < 2e-6


def in_sub_groups(rank: int, world_size: int) -> list[float]:
    """Pairs of ranks synchronize; the last rank is alone. Each compares with its own group's batch."""
    members = [[0, 1], [2, 3], [4]]
    groups = [dist.new_group(ranks) for ranks in members]
    mine = next(i for i, ranks in enumerate(members) if rank in ranks)
    case = Case(split="uneven")
    x, dy, mask = case.data(world_size, 0)
    shares = [case.share(r, world_size) for r in members[mine]]
    whole = slice(shares[0].start, shares[-1].stop)
    wanted = expected(x[whole], dy[whole], torch.ones(case.C), torch.zeros(case.C), mask[whole])
    layer = SyncBatchNorm(case.C, process_group=groups[mine], dtype=torch.float64)
    share = case.share(rank, world_size)
    own = x[share].clone().requires_grad_()
    layer(own).backward(dy[share])
    inside = slice(share.start - whole.start, share.stop - whole.start)
    return [error(own.grad, wanted.dx[inside]), error(layer.running_mean, 0.1 * wanted.mean)]


@pytest.mark.ranks
def test_sub_groups_synchronize_among_themselves(ranks) -> None:
    """With a process_group, only its ranks' batches count, forward and backward."""
    assert max(max(errors) for errors in ranks.run(5, in_sub_groups)) < 1e-12


def refuse(rank: int, world_size: int, shape: tuple[int, ...]) -> tuple[str, str, int]:
    """What a batch that is too small raises on this rank, and whether num_batches_tracked moved."""
    layer = SyncBatchNorm(3)
    try:
        layer(torch.zeros(shape if rank == 0 else (0, *shape[1:])))
    except ValueError as failure:
        return type(failure).__name__, str(failure), int(layer.num_batches_tracked)
    return "nothing", "", 0


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("shape", "name", "text"), [((0, 3, 2), "EmptyBatchError", "no values"), ((1, 3), "BatchTooSmallError", "got 1 over all")]
)
def test_too_few_values_raise_on_every_rank(ranks, shape, name, text) -> None:
    """A batch that is empty, or a single value, over all ranks is an error on each of them, and none hangs."""
    for kind, message, tracked in ranks.run(2, refuse, shape):
        assert kind == name
        assert text in message
        assert "eval()" in message
        assert tracked == 0


@pytest.mark.ranks
def test_one_value_on_each_of_two_ranks_is_enough(ranks) -> None:
    """The positive twin: what counts is the number of values over all ranks."""
    check(ranks.run(2, compare, Case(split="single samples", spatial=())), torch.float64)


def ddp_step(rank: int, world_size: int) -> list[float]:
    """A model under DistributedDataParallel with share-weighted losses against one process with the whole batch."""
    sizes = (3, 1, 4)[:world_size]
    start = sum(sizes[:rank])
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3, bias=False), nn.BatchNorm1d(3)
    ).double()
    x, target = torch.randn(sum(sizes), 2, 5, 5).double(), torch.randint(0, 3, (sum(sizes),))
    model = nn.parallel.DistributedDataParallel(syncbn.convert_sync_batchnorm(copy.deepcopy(plain)), broadcast_buffers=False)
    nn.functional.cross_entropy(plain(x), target).backward()
    share = slice(start, start + sizes[rank])
    loss = nn.functional.cross_entropy(model(x[share]), target[share], reduction="sum")
    (loss * world_size / sum(sizes)).backward()
    pairs = zip(model.module.parameters(), plain.parameters(), strict=True)
    buffers = zip(model.module.buffers(), plain.buffers(), strict=True)
    return [error(a.grad, b.grad) for a, b in pairs] + list(starmap(error, buffers))


@pytest.mark.ranks
def test_ddp_averages_to_the_gradient_of_the_whole_batch(ranks) -> None:
    """With each loss weighted by its share, DDP's average is the gradient of the mean over the whole batch, in every parameter."""
    assert max(max(errors) for errors in ranks.run(3, ddp_step)) < 1e-10


def evaluate_alone(rank: int, world_size: int) -> bool:
    """Only rank 0 evaluates: a layer that communicated would wait for rank 1 in vain."""
    layers = [SyncBatchNorm(3).eval(), SyncBatchNorm(3, track_running_stats=False).eval()]
    if rank == 0:
        x = torch.randn(4, 3, 2)
        assert torch.equal(layers[0](x), nn.BatchNorm1d(3).eval()(x))
        assert torch.equal(layers[1](x), nn.BatchNorm1d(3, track_running_stats=False).eval()(x))
    return True


@pytest.mark.ranks
def test_eval_never_waits_for_others(ranks) -> None:
    """Evaluation on one rank alone works, with running statistics and without."""
    assert ranks.run(2, evaluate_alone) == [True, True]


def copies(rank: int, world_size: int) -> tuple[bool, bool]:
    """Deepcopy shares the process group; pickling leaves it behind."""
    group = dist.new_group([0, 1])
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), group)
    model(torch.randn(4, 3))
    twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert torch.equal(twin[0].running_mean, model[0].running_mean)
    assert twin[0].running_mean is not model[0].running_mean
    assert torch.equal(loaded[0].running_mean, model[0].running_mean)
    twin(torch.randn(4, 3))
    loaded(torch.randn(4, 3))
    return twin[0].process_group is group, loaded[0].process_group is None


@pytest.mark.ranks
def test_deepcopy_and_pickle_with_a_process_group(ranks) -> None:
    """A layer with a process group can be copied and pickled, and the results work."""
    assert ranks.run(2, copies) == [(True, True)] * 2


def outside(rank: int, world_size: int) -> str:
    """A group that does not contain this rank."""
    group = dist.new_group([0])
    layer = SyncBatchNorm(3, process_group=group)
    try:
        layer(torch.randn(4, 3))
    except syncbn.GroupError as failure:
        return str(failure)
    return "fine"


@pytest.mark.ranks
def test_a_foreign_group_is_refused(ranks) -> None:
    """A rank that is not in the group it was given is told so; the member works."""
    member, stranger = ranks.run(2, outside)
    assert member == "fine"
    assert "does not contain this process (rank 1" in stranger
