"""What each kind of normalization does at small batches: held-out accuracy on scikit-learn's digits, two ranks, and what a step costs.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.norm_kinds

Every cell trains the same network for the same number of steps from the same seeds; only the norm and the samples per rank and step differ.
Columns see different numbers of samples: compare within a column. The time of a step is the whole network's, in turns with batch_norm.
Prints the table of docs/norms.md; takes two to three minutes on two cores.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from syncbn import build_norm
from tests.support.ranks import RankPool

BATCH_SIZES = (1, 2, 8, 32)
NUM_RANKS, NUM_STEPS, SEEDS, NUM_TURNS = 2, 250, (0, 1), 3
LEARNING_RATE = 2e-3
# The schedule of batch_renorm is for tens of thousands of steps; here it is over by half.
OPTIONS: dict[str, dict[str, Any]] = {
    "batch_norm": {},
    "sync_bn": {},
    "ghost_bn": {"virtual_batch_size": 8},
    "batch_renorm": {"start": 25, "r_end": 125, "d_end": 75},
    "group_norm": {"num_groups": 4},
    "layer_norm": {},
    "instance_norm": {},
    "switchable": {},
    "frozen_bn": {},
}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (N, 1, 8, 8) and labels, then every fifth sample, held out."""
    from sklearn.datasets import load_digits

    table = load_digits()
    images, labels = torch.from_numpy(table.images).float().unsqueeze(1) / 16, torch.from_numpy(table.target)
    is_test = torch.arange(len(labels)) % 5 == 0
    return images[~is_test], labels[~is_test], images[is_test], labels[is_test]


def network(kind: str) -> nn.Sequential:
    """Three convolutions, each with a norm, and a linear layer."""
    layers: list[nn.Module] = []
    for channels_in, channels, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), build_norm(kind, channels, **OPTIONS[kind]), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(  # noqa: PLR0917  a program's arguments have no names
    rank: int, world_size: int, kind: str, batch_size: int, num_steps: int, seed: int
) -> tuple[float, float]:
    """Train on this rank's shares; held-out accuracy in eval mode of this rank's model, and milliseconds per step."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(seed)
    model = network(kind)
    trained: nn.Module = DistributedDataParallel(model, broadcast_buffers=False) if world_size > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    order = torch.randint(len(y), (num_steps, world_size, batch_size), generator=torch.Generator().manual_seed(seed))
    start = time.perf_counter()
    for step in range(num_steps):
        share = order[step, rank]
        optimizer.zero_grad()
        cross_entropy(trained(x[share]), y[share]).backward()
        optimizer.step()
    step_ms = (time.perf_counter() - start) * 1e3 / num_steps
    with torch.no_grad():
        return float((model.eval()(x_test).argmax(1) == y_test).double().mean()), step_ms


def state(kind: str, num_features: int = 32) -> str:
    """What a layer keeps, as multiples of C: parameters that are trained, and buffers."""
    layer = build_norm(kind, num_features, **OPTIONS[kind])
    learned, kept = (sum(t.numel() for t in tensors) for tensors in (layer.parameters(), layer.buffers()))
    text = [f"{number // num_features}C" + (f"+{rest}" if (rest := number % num_features) else "") for number in (learned, kept)]
    return f"{text[0]} learned, {text[1]} kept"


def relative_time(pool: RankPool, kind: str) -> float:
    """Time of a step at the largest batch over that with batch_norm: the quickest runs, in turns so that other load falls on both alike."""
    times_ms: dict[str, list[float]] = {"batch_norm": [], kind: []}
    for _ in range(NUM_TURNS):
        for name, found in times_ms.items():
            found.append(pool.run(NUM_RANKS, train, name, BATCH_SIZES[-1], 40, 0)[0][1])
    return min(times_ms[kind]) / min(times_ms["batch_norm"])


def main() -> None:
    """Run all cells and print the table."""
    print("| kind | state per layer |" + "".join(f" {size} per rank |" for size in BATCH_SIZES) + " step at 32, batch_norm = 1 |")
    print("|---|---|" + "---|" * (len(BATCH_SIZES) + 1))
    with RankPool() as pool:
        pool.run(NUM_RANKS, train, "sync_bn", BATCH_SIZES[-1], 20, 0)  # whatever is only slow the first time
        for kind in OPTIONS:
            row = f"| {kind} | {state(kind)} |"
            for batch_size in BATCH_SIZES:
                runs = [pool.run(NUM_RANKS, train, kind, batch_size, NUM_STEPS, seed)[0] for seed in SEEDS]
                accuracies = [100 * accuracy for accuracy, _ in runs]
                row += f" {sum(accuracies) / len(runs):.0f} % ({min(accuracies):.0f}-{max(accuracies):.0f}) |"
            print(row + f" {relative_time(pool, kind):.1f} |", flush=True)


if __name__ == "__main__":
    main()
