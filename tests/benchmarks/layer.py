"""SyncBatchNorm against torch's local BatchNorm, forward and backward, side by side in one run on two gloo ranks. `make bench-layer`.

Prints ratios of medians, never a lone time: above 1 is slower than local BatchNorm. Local BatchNorm normalizes over half the samples and
sends nothing, so it is a bound, not a rival.
"""

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from syncbn import SyncBatchNorm
from syncbn.function import Parameters, normalize_batch
from tests.support.ranks import RankPool

SHAPES = [(32, 16, 32, 32), (32, 64, 32, 32), (32, 256, 14, 14), (32, 512, 7, 7), (16, 64, 112, 112)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ROUNDS = 15
Measured = dict[tuple[tuple[int, ...], str], tuple[float, float]]


def measure(rank: int, world_size: int) -> Measured:
    """Return, for every shape and layout, the ratios to local BatchNorm: of the inner loops alone, and of the whole layer.

    Collectives: those of the layers; every rank of the group must call.
    """
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    return {(shape, name): _ratios(shape, layout) for shape in SHAPES for name, layout in LAYOUTS.items()}


def _ratios(shape: tuple[int, ...], layout: torch.memory_format) -> tuple[float, float]:
    x = torch.randn(shape).to(memory_format=layout).requires_grad_()
    dy = torch.randn(shape).to(memory_format=layout)
    local, synchronized = nn.BatchNorm2d(shape[1]), SyncBatchNorm(shape[1])
    alone = Parameters(synchronized.weight, synchronized.bias, synchronized.eps, None)
    forwards: list[Callable[[Tensor], Tensor]] = [local, lambda x: normalize_batch(x, None, alone)[0], synchronized]
    times: list[list[float]] = [[], [], []]
    for number in range(ROUNDS + 2):
        for forward, seen in zip(forwards, times, strict=True):
            start = time.perf_counter()
            forward(x).backward(dy)
            if number >= 2:
                seen.append(time.perf_counter() - start)
            x.grad = None
    local_s, loops_s, whole_s = (statistics.median(seen) for seen in times)
    return loops_s / local_s, whole_s / local_s


def main() -> None:
    """Measure on two ranks and print the table."""
    with RankPool(answer_timeout_s=300) as pool:
        by_rank: list[Measured] = pool.run(2, measure)
    print("| shape | layout | inner loops / local BatchNorm2d | with both all-reduces / local BatchNorm2d |")
    print("|---|---|---|---|")
    columns: list[list[float]] = [[], []]
    for key in by_rank[0]:
        ratios = [max(measured[key][column] for measured in by_rank) for column in range(2)]
        for column, ratio in zip(columns, ratios, strict=True):
            column.append(ratio)
        print(f"| {'x'.join(map(str, key[0]))} | {key[1]} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    means = [math.exp(statistics.fmean(map(math.log, column))) for column in columns]
    print(f"| geometric mean | | {means[0]:.2f} | {means[1]:.2f} |")


if __name__ == "__main__":
    main()
