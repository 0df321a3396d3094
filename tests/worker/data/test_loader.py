"""Tests of worker/data/loader.py, loader_pool.py, loader_process.py, shared_memory.py and assembly.py: real processes, real signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch

from tests.support.images import truncate, write_classes
from tests.support.splits import NumberSplit
from worker.contract.data import DataSpec
from worker.data.assembly import Recipe, taken_bad
from worker.data.loader import Loader
from worker.data.mixing import Mixing
from worker.data.registry import build_data
from worker.data.shared_memory import SharedMemory
from worker.errors import DataError, LoaderError
from worker.sampler import Plan, Sampler

TIMEOUT_S = 60.0
TRANSFORMS = [{"name": "random_crop", "size": 10}, {"name": "flip"}, {"name": "color", "brightness": 0.5}, {"name": "mixup"}]
# In the thread of the step, in a thread that runs ahead, and in processes.
WAYS = [(0, 0), (0, 3), (2, 1)]


@pytest.fixture
def folder(tmp_path):
    """Forty images."""
    return write_classes(tmp_path / "photos", {"a": 20, "b": 20})


@pytest.fixture
def load():
    """Loaders that are closed at the end."""
    made = []

    def make(recipe, processes=0, prefetch=0, *, rank=0, world_size=1, warn=lambda code, message: None):
        plan = Plan(recipe.split.num_samples, 10, 3, None)
        made.append(Loader(recipe, Sampler(plan, 1, rank, world_size, accumulate=2), num_processes=processes, prefetch=prefetch, warn=warn))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def _recipe(folder, **options):
    spec = DataSpec(name="imagefolder", path=str(folder), transforms=TRANSFORMS, **options)
    train = build_data(spec, 5).train
    return Recipe(train, Mixing(spec.mixup, 5, train.num_classes))


def _all(loader, steps=range(12)):
    return [loader.batch(step, part) for step in steps for part in range(2)]


def _equal(some, others):
    return len(some) == len(others) and all(
        torch.equal(a, b) for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def _first_of(step):
    return int(Sampler(Plan(40, 10, 3, None), 1, 0, 1).batch(step)[0])


def _await_end(pids):
    deadline = time.monotonic() + TIMEOUT_S
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, f"{pids} live on"
        time.sleep(0.01)


def test_batches_are_the_same_however_they_are_loaded(folder, load):
    """Every bit, over three epochs: the number of processes and how far they run ahead are no part of the result."""
    expected = _all(load(_recipe(folder)))

    assert expected[0][0].shape == (5, 3, 10, 10)
    for processes, prefetch in WAYS[1:]:
        assert _equal(_all(load(_recipe(folder), processes, prefetch)), expected), (processes, prefetch)


def test_ranks_load_the_parts_of_one_batch(folder, load):
    """Three ranks together have what one rank has, partners of other ranks mixed in; shares may be empty."""
    whole = _all(load(_recipe(folder)))
    parts = [_all(load(_recipe(folder), rank=rank, world_size=3)) for rank in range(3)]

    for number, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[number][1] for part in parts]), y)


@pytest.mark.parametrize(("processes", "prefetch"), WAYS)
def test_loading_begins_at_any_step(folder, load, processes, prefetch):
    """After a resume, and again after a recovery; the batches are those of the step, also of the very last one."""
    expected = _all(load(_recipe(folder)))
    loader = load(_recipe(folder), processes, prefetch)

    assert _equal(_all(loader, [7, 8]), expected[14:18])
    assert _equal(_all(loader, [8, 9, 10, 11]), expected[16:24])
    assert _equal(_all(loader, [11]), expected[22:24])


@pytest.mark.parametrize(("processes", "prefetch"), WAYS)
def test_bad_samples_are_reported_with_their_batch(folder, load, processes, prefetch):
    """Once per epoch, whoever reads them, and not again where they are partners."""
    recipe = _recipe(folder)
    name = recipe.split.records.describe(recipe.split.numbers[3])
    truncate(type(folder)(name))
    loader = load(recipe, processes, prefetch)
    _all(loader, range(4))

    assert loader.num_bad == 1
    assert [sample.name for sample in loader.take_bad()] == [name]
    assert (loader.num_bad, taken_bad(recipe.split)) == (0, ())


@pytest.mark.parametrize(("processes", "prefetch"), WAYS)
def test_what_loading_raises_the_step_raises(load, processes, prefetch):
    """As the data's fault, with the file and line, and the step before it is not disturbed."""
    loader = load(Recipe(NumberSplit({_first_of(1): "raise"})), processes, prefetch)
    _all(loader, [0])

    with pytest.raises(DataError, match=r"in batch: ValueError: sample \d+ is broken"):
        _all(loader, [1])


def test_a_killed_process_is_replaced(load):
    """Its batches are made again, and the job hears of it."""
    said = []
    expected = _all(load(Recipe(NumberSplit())))
    loader = load(Recipe(NumberSplit()), 2, 1, warn=lambda code, message: said.append((code, message)))
    before = _all(loader, range(3))
    victim = loader.pids[0]
    os.kill(victim, signal.SIGKILL)

    assert _equal(before + _all(loader, range(3, 12)), expected)
    assert said == [("loader_restarted", said[0][1])]
    assert said[0][1].startswith(f"loader process {victim} ended with code -9 at step ")


def test_a_process_that_dies_again_and_again_ends_the_job(load):
    """A decoder that crashes on one file is no matter for patience."""
    loader = load(Recipe(NumberSplit({9: "die"})), 2, 1)

    with pytest.raises(LoaderError, match=r"ended with code -9 at step .*the 4th to do so; expected at most 3"):
        _all(loader)
    _await_end(loader.pids)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_batch_that_never_comes_is_an_error_in_time(load, monkeypatch, processes):
    """The message names the step, the bound, and what to look at."""
    monkeypatch.setenv("SYNCBN_BATCH_TIMEOUT_S", "0.5")
    loader = load(Recipe(NumberSplit({_first_of(0): "hang"})), processes, 1)

    with pytest.raises(LoaderError, match=r"no batch for step 1 within 0\.5 s; expected one sooner; look at the storage"):
        loader.batch(0, 0)


def test_loader_processes_load_no_torch(load):
    """They start in a fraction of a second and stay small."""
    x, _ = load(Recipe(NumberSplit(dict.fromkeys(range(40), "report"))), 1, 1).batch(0, 0)

    assert not x.any()
    assert "torch" in sys.modules


def test_closing_leaves_no_process_and_no_thread(folder, load):
    """In the middle of loading, too."""
    loader = load(_recipe(folder), 2, 2)
    loader.batch(0, 0)
    pids = loader.pids
    loader.close()

    assert all(not psutil.pid_exists(pid) for pid in pids)
    assert "loader" not in {thread.name for thread in threading.enumerate()}


RANK = """
import sys, time
from worker.contract.data import DataSpec
from worker.data.assembly import Recipe
from worker.data.loader import Loader
from worker.data.registry import build_data
from worker.sampler import Plan, Sampler
train = build_data(DataSpec(name="imagefolder", path=sys.argv[1]), 0).train
loader = Loader(Recipe(train), Sampler(Plan(train.num_samples, 4, 1000, None), 0, 0, 1), num_processes=2, prefetch=2, warn=print)
loader.batch(0, 0)
print(*loader.pids, flush=True)
time.sleep(600)
"""


def test_a_killed_rank_leaves_no_process(folder):
    """It has no time to say goodbye; its loader processes notice."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", RANK, str(folder)], stdout=subprocess.PIPE, text=True, env=environment) as rank:
        pids = [int(pid) for pid in rank.stdout.readline().split()]
        assert len(pids) == 2
        rank.kill()

    _await_end(pids)


def test_shared_memory_grows_with_its_arrays():
    """Both ends see what was written last, whatever its size; empty arrays take no room."""
    writer = SharedMemory()
    reader = SharedMemory(os.dup(writer.fd))
    for size in (3, 0, 100_000, 5):
        arrays = [np.arange(size, dtype=np.float32).reshape(-1, 1), np.arange(size)]
        found = reader.views(writer.write(arrays))
        for array, view in zip(arrays, found, strict=True):
            assert np.array_equal(array, view)
            assert array.dtype == view.dtype
        del found, view
    reader.close()
    writer.close()
