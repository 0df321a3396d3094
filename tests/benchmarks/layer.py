"""SyncBatchNorm against torch's local BatchNorm, forward and backward, side by side in one run on two gloo ranks. `make bench-layer`.

Prints ratios, never a lone time: above 1 is slower than local BatchNorm, which normalizes over half the samples and sends nothing, so it
is a bound, not a rival. Beside it: what two bare all-reduces of the same bytes take, which is the wire and not ours;
a layer that gathers; activations and residuals; memory; bytes and collectives by world size; on a machine with a GPU, torch's own layer.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from syncbn import SyncBatchNorm, inner_loops
from syncbn.function import Parameters, normalized
from syncbn.stages import Running
from tests.support.ranks import RankPool

SHAPES = [(32, 16, 32, 32), (32, 64, 32, 32), (32, 256, 14, 14), (32, 512, 7, 7), (16, 64, 112, 112)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ROUNDS = 15
WORLD_SIZES = [2, 8, 64, 1024]
COLUMNS = ("ATen loops", "compiled loops", "ATen + all-reduces", "compiled + all-reduces", "2 bare all-reduces", "gather")
FUSED = ("ATen, relu", "compiled, relu", "ATen, add + relu", "compiled, add + relu")
Ratios = dict[tuple[tuple[int, ...], str], list[float]]


class Gathering(torch.autograd.Function):
    """The other scheme: every rank's mean, inverse deviation and count are gathered, and merged by every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """One all_gather of 2C + 1 numbers per rank."""
        C = x.shape[1]
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        mine = torch.cat((mean, (var + eps).rsqrt(), torch.full((1,), x.numel() / C)))
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        means, invstds, counts = torch.stack(parts).split((C, C, 1), 1)
        n = counts.sum()
        mean = (counts * means).sum(0) / n
        invstd = ((counts * (invstds.pow(-2) - eps + (means - mean).square())).sum(0) / n + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, invstd, n)
        return torch.native_batch_norm(x, weight, bias, mean, invstd.pow(-2) - eps, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """One all_reduce of 2C numbers."""
        x, weight, mean, invstd, n = ctx.saved_tensors
        _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, invstd, True, 0.0, [False, True, True]
        )
        summed = torch.cat((dweight, dbias))
        dist.all_reduce(summed)
        by_xhat, plain = (summed / n).chunk(2)
        along = (1, -1, 1, 1)
        scale = (weight * invstd).view(along)
        xhat = (x - mean.view(along)) * invstd.view(along)
        return scale * (dy - plain.view(along) - xhat * by_xhat.view(along)), dweight, dbias, None


def in_turns(runs: list[Callable[[], Any]], begin: Callable[[], Any] = lambda: None) -> list[list[float]]:
    """The times of each, taken in turns, after `begin`. The first two turns do not count."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS + 2):
        for run, seen in zip(runs, times, strict=True):
            begin()
            start = time.perf_counter()
            run()
            if number >= 2:
                seen.append(time.perf_counter() - start)
    return times


def least(times: list[list[float]]) -> list[float]:
    """The least time of each: what else runs on the machine only adds."""
    return [min(seen) for seen in times]


def with_loops(kind: str, forward: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Callable[[], None]:
    """A forward and backward with these inner loops."""

    def run() -> None:
        x.grad = None
        with inner_loops(kind):
            forward(x).backward(dy)

    return run


def batch(shape: tuple[int, ...], layout: torch.memory_format, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Input, output gradient, residual."""
    x, dy, residual = (torch.randn(shape, device=device).to(memory_format=layout) for _ in range(3))
    return x.requires_grad_(), dy, residual


def measure(rank: int, world_size: int, shape: tuple[int, ...], layout_name: str) -> list[list[float]]:
    """The times of local BatchNorm2d and `COLUMNS`. Ranks begin each together, so that they share the memory's bandwidth in all alike.

    Collectives: a barrier before each, and those of the layers; every rank of the group must call.
    """
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    C = shape[1]
    x, dy, _ = batch(shape, LAYOUTS[layout_name])
    local, layer = nn.BatchNorm2d(C), SyncBatchNorm(C)
    running = Running(torch.zeros(C), torch.ones(C), 0.1, unbiased=True)
    alone = Parameters(layer.weight, layer.bias, layer.eps, None, running=running)

    def loops(values: Tensor) -> Tensor:
        return normalized(values, None, alone)

    def bare() -> None:
        for length in (2 * C + 1, 2 * C):
            dist.all_reduce(torch.ones(length, dtype=torch.float64))

    runs = [
        with_loops("aten", local, x, dy),
        with_loops("aten", loops, x, dy),
        with_loops("compiled", loops, x, dy),
        with_loops("aten", layer, x, dy),
        with_loops("compiled", layer, x, dy),
        bare,
        with_loops("aten", lambda values: Gathering.apply(values, layer.weight, layer.bias, layer.eps), x, dy),
    ]
    runs[2]()  # compiles, while no rank waits for another in a layer
    dist.barrier()
    return in_turns(runs, dist.barrier)


def measure_fused(rank: int, world_size: int, shape: tuple[int, ...], layout_name: str) -> list[float]:
    """The ratios of `FUSED`, inner loops only, to BatchNorm2d + ReLU and to BatchNorm2d + add + ReLU; then the same for peak memory."""
    torch.set_num_threads(1)
    C = shape[1]
    x, dy, residual = batch(shape, LAYOUTS[layout_name])
    residual.requires_grad_()
    local = nn.BatchNorm2d(C)

    def fused(added: Tensor | None) -> Callable[[Tensor], Tensor]:
        layer = Parameters(local.weight, local.bias, local.eps, None, None, "relu", added, None)
        return lambda values: normalized(values, None, layer)

    plain = [
        with_loops("aten", lambda values: local(values).relu(), x, dy),
        with_loops("aten", lambda values: (local(values) + residual).relu(), x, dy),
    ]
    ours = [with_loops(kind, fused(added), x, dy) for added in (None, residual) for kind in ("aten", "compiled")]
    times, peaks = least(in_turns([*plain, *ours])), [peak_bytes(run) for run in (*plain, *ours)]
    return [each[2 + column] / each[column // 2] for each in (times, peaks) for column in range(4)]


def peak_bytes(run: Callable[[], None]) -> int:
    """The most memory allocated at one time during a call, beyond what was there before."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def table(title: str, columns: tuple[str, ...], ratios: Ratios) -> None:
    """Print a row per shape and layout, and the geometric means."""
    print(f"\n{title}\n\n| shape | layout | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for (shape, layout), row in ratios.items():
        print(f"| {'x'.join(map(str, shape))} | {layout} | {' | '.join(f'{ratio:.2f}' for ratio in row)} |")
    means = [math.exp(statistics.fmean(map(math.log, column))) for column in zip(*ratios.values(), strict=True)]
    print(f"| geometric mean | | {' | '.join(f'{mean:.2f}' for mean in means)} |", flush=True)


def traffic(C: int = 2048) -> None:
    """Print what a rank sends and receives per layer by world size; tests/syncbn/test_host_sync.py counts ours at 2, 8 and 1024 ranks."""
    print(f"\nCollectives and bytes per rank for C = {C}, forward and backward; ours whatever the number of ranks\n")
    print("| ranks | ours | bytes handed over | gather | bytes received in the gather |\n|---|---|---|---|---|")
    for size in WORLD_SIZES:
        gathered = 4 * size * (2 * C + 1)
        print(f"| {size} | 2 all_reduce | {8 * (2 * C + 1)} + {8 * 2 * C} | 1 all_gather, 1 all_reduce | {gathered} + {4 * 2 * C} |")


def gpu_rows() -> None:
    """Print torch.nn.SyncBatchNorm and ours on one GPU, in a group of one, or that there is none."""
    if not torch.cuda.is_available():
        print("\nGPU: skipped, no CUDA device here.")
        return
    ratios: Ratios = {}
    for shape in SHAPES:
        for name, layout in LAYOUTS.items():
            x, dy, _ = batch(shape, layout, "cuda")
            local = nn.BatchNorm2d(shape[1], device="cuda")
            alone = Parameters(local.weight, local.bias, local.eps, None)
            torch_layer = nn.SyncBatchNorm(shape[1], device="cuda")
            forwards = (local, lambda values, alone=alone: normalized(values, None, alone), torch_layer)
            times = least(in_turns([synchronized(with_loops("aten", forward, x, dy)) for forward in forwards]))
            ratios[shape, name] = [each / times[0] for each in times[1:]]
    table("GPU, / local BatchNorm2d, one process", ("our loops", "torch.nn.SyncBatchNorm"), ratios)


def synchronized(run: Callable[[], None]) -> Callable[[], None]:
    """Waits until the device has done it."""

    def whole() -> None:
        run()
        torch.cuda.synchronize()

    return whole


def against_local(by_rank: list[list[list[float]]]) -> list[float]:
    """Of the times of `measure`, what the gang took: of each turn the slower rank's time, of these the least; to local BatchNorm2d."""
    times = [min(map(max, zip(*seen, strict=True))) for seen in zip(*by_rank, strict=True)]
    return [each / times[0] for each in times[1:]]


def main() -> None:
    """Measure on two ranks and print the tables."""
    cases = [(shape, name) for shape in SHAPES for name in LAYOUTS]
    with RankPool(answer_timeout_s=600) as pool:
        table("Forward and backward / local BatchNorm2d", COLUMNS, {case: against_local(pool.run(2, measure, *case)) for case in cases})
        fused = {case: pool.run(1, measure_fused, *case)[0] for case in cases}
    table("Inner loops with epilogue / BatchNorm2d and the same operators", FUSED, {case: row[:4] for case, row in fused.items()})
    table("Peak memory of the same", FUSED, {case: row[4:] for case, row in fused.items()})
    traffic()
    gpu_rows()


if __name__ == "__main__":
    main()
