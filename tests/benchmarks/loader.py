"""The loader against torch.utils.data.DataLoader with the same work, side by side: `python -m tests.benchmarks.loader`.

Both load the same batches, read, cropped and flipped by the same code, as fast as they can, with nobody training, from their start to the
last batch; rounds alternate between them.
The second table is what a step waits for: a step of fixed length, for how long `data/wait_s` says it waited.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from worker.contract.data import DataSpec
from worker.data.assembly import Recipe
from worker.data.loader import Loader
from worker.data.registry import build_data
from worker.data.split import Split
from worker.sampler import Plan, Sampler

NUM_BATCHES, BATCH_SIZE, NUM_ROUNDS, NUM_PROCESSES = 24, 32, 3, 2
STEP_S = 0.25


@dataclass(frozen=True)
class Samples(torch.utils.data.Dataset[Any]):
    """A split as DataLoader wants it: sample by sample."""

    split: Split

    def __len__(self) -> int:
        """Samples in the split."""
        return self.split.num_samples

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return one image and its label."""
        x, y = self.split.batch(np.array([index]), 0)
        return x[0], y[0]


def _ours(split: Split, num_processes: int, prefetch: int) -> Iterator[Any]:
    plan = Plan(split.num_samples, BATCH_SIZE, None, NUM_BATCHES)
    loader = Loader(Recipe(split), Sampler(plan, 0, 0, 1), num_processes=num_processes, prefetch=prefetch, warn=lambda code, message: None)
    try:
        for step in range(NUM_BATCHES):
            yield loader.batch(step, 0)
    finally:
        loader.close()


def _theirs(split: Split, num_processes: int) -> Iterator[Any]:
    order = Sampler(Plan(split.num_samples, BATCH_SIZE, None, NUM_BATCHES), 0, 0, 1)
    batches = [order.batch(step).tolist() for step in range(NUM_BATCHES)]
    # As ranks have threads, forking is no choice; spawned processes import torch.
    context = "spawn" if num_processes else None
    yield from DataLoader(Samples(split), batch_sampler=batches, num_workers=num_processes, multiprocessing_context=context)


def _run(make: Callable[[], Iterator[Any]]) -> tuple[float, float]:
    """Return the seconds to the first batch, and to the last."""
    started = time.perf_counter()
    batches = make()
    next(batches)
    first = time.perf_counter()
    for _ in batches:
        pass
    return first - started, time.perf_counter() - started


def _row(name: str, split: Split) -> str:
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "inline": lambda: _ours(split, 0, 0),
        "DataLoader inline": lambda: _theirs(split, 0),
        "processes": lambda: _ours(split, NUM_PROCESSES, 2),
        "DataLoader processes": lambda: _theirs(split, NUM_PROCESSES),
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(NUM_ROUNDS):
        for way, make in ways.items():
            times[way].append(_run(make))
    first = {way: statistics.median(pair[0] for pair in pairs) for way, pairs in times.items()}
    whole = {way: statistics.median(pair[1] for pair in pairs) for way, pairs in times.items()}
    return (
        f"| {name} | {NUM_BATCHES * BATCH_SIZE / whole['inline']:.0f} | {whole['inline'] / whole['DataLoader inline']:.2f}"
        f" | {whole['processes'] / whole['DataLoader processes']:.2f} | {first['processes'] / first['DataLoader processes']:.2f}"
        f" | {first['processes']:.2f} s |"
    )


def _waits(name: str, split: Split) -> str:
    """Return how long a step of STEP_S that uses no processor, as one on a GPU, waits for its batch: medians."""
    cells = []
    for num_processes, prefetch in ((0, 0), (0, 2), (NUM_PROCESSES, 2)):
        plan = Plan(split.num_samples, BATCH_SIZE, None, NUM_BATCHES)
        loader = Loader(
            Recipe(split), Sampler(plan, 0, 0, 1), num_processes=num_processes, prefetch=prefetch, warn=lambda code, message: None
        )
        waits = []
        for step in range(NUM_BATCHES):
            loader.batch(step, 0)
            waits.append(loader.take_wait_s())
            time.sleep(STEP_S)
        loader.close()
        cells.append(f"{1000 * statistics.median(waits[1:]):.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def _photos(root: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(NUM_BATCHES * BATCH_SIZE // 4):
            smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((320, 240))
            smooth.save(root / name / f"{number}.jpg", quality=90)


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    crops = [{"name": "random_crop", "size": 224}, {"name": "flip"}, {"name": "normalize", "mean": [0.5], "std": [0.25]}]
    with tempfile.TemporaryDirectory() as folder:
        _photos(Path(folder))
        sets = {
            "digits": build_data(DataSpec(name="digits"), 0).train,
            "synthetic, 3 x 32 x 32": build_data(DataSpec.model_validate({"name": "synthetic"}), 0).train,
            "photos of 320 x 240, JPEG": build_data(
                DataSpec.model_validate({"name": "imagefolder", "path": folder, "transforms": crops}), 0
            ).train,
        }
        print(
            "| data | samples/s inline | inline / DataLoader | 2 processes / DataLoader | first batch of them / DataLoader | first batch |"
        )
        print("|---|---|---|---|---|---|")
        for name, split in sets.items():
            print(_row(name, split), flush=True)
        print(f"\n| data | wait of a step of {1000 * STEP_S:.0f} ms, in ms: inline | a thread ahead | 2 processes |\n|---|---|---|---|")
        for name, split in sets.items():
            print(_waits(name, split), flush=True)


if __name__ == "__main__":
    main()
