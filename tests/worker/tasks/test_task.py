"""Tests of worker/tasks/task.py and registry.py: tasks of the user's own, the worked example of the documentation among them."""

import re
from pathlib import Path

import pytest
import torch

from tests.support.jobs import FailureCode, run_job, small_spec
from worker.contract import TASKS
from worker.contract.spec import DataSpec, TaskSpec
from worker.data.registry import build_data
from worker.errors import TaskError
from worker.tasks.registry import BUILDERS, build_task
from worker.tasks.task import checked_losses, checked_sums

DOCUMENT = Path(__file__).parents[3] / "docs" / "tasks.md"
DATA = build_data(DataSpec(name="synthetic"), 0).train


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A directory on the path of modules, as a code bundle is."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def run_with_code(rank, world_size, folder, name, *arguments):
    """The program of a rank that finds the user's code."""
    import sys

    from tests.support.jobs import run_one_rank

    sys.path.insert(0, folder)
    sys.modules.pop(name, None)
    try:
        return run_one_rank(rank, world_size, *arguments)
    finally:
        sys.path.remove(folder)


def test_every_name_of_the_catalogue_can_be_built():
    """What the controller accepts, a rank can build."""
    assert BUILDERS.keys() == TASKS.keys()


@pytest.mark.ranks
def test_the_documented_task_trains_alike_on_one_and_two_ranks(pool, tmp_path, code):
    """The worked example runs as it is printed; its own metrics are reported, rule the best checkpoint, and do not depend on the ranks."""
    (code / "mytasks.py").write_text(re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL).group(1))
    runs = {}
    for workers in (1, 2):
        storage = tmp_path / str(workers)
        storage.mkdir()
        spec = small_spec(
            workers,
            task={"name": "code:mytasks:Regression", "args": {"scale": 0.5}},
            precision="fp64",
            checkpoint={"keep_best": {"metric": "val/mae", "mode": "min"}},
        )
        run, *_ = run_job(_OnPath(pool, str(code)), spec, storage)
        assert run.outcome == "succeeded", run.failure
        runs[workers] = {name: run.series(name) for name in ("train/loss", "train/mae", "train/right", "val/loss", "val/mae", "val/right")}

    assert len(runs[1]["train/mae"]) == 3
    for name, series in runs[1].items():
        assert runs[2][name] == pytest.approx(series, rel=1e-9), name


class _OnPath:
    """A pool whose ranks find the user's code."""

    def __init__(self, pool, folder):
        self._pool, self._folder = pool, folder

    def run(self, world_size, program, *arguments):
        return self._pool.run(world_size, run_with_code, self._folder, "mytasks", *arguments)


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("greedy_task", "class T:\n    def __init__(self, colour):\n        pass", "cannot be called with"),
        ("empty_task", "class T:\n    pass", "made a T; expected an object with losses, sums and metrics"),
        ("raising_task", "raise ValueError('not today')", "code/raising_task.py:1 in <module>: ValueError: not today"),
        ("importing_task", "import absent_module", "No module named 'absent_module'"),
    ],
)
def test_a_task_that_cannot_be_made_is_the_users_fault(code, module, source, said):
    """In their own words, with file and line."""
    (code / f"{module}.py").write_text(source)

    with pytest.raises(TaskError) as caught:
        build_task(TaskSpec(name=f"code:{module}:T"), DATA)
    assert said in str(caught.value)


def test_losses_and_sums_of_the_wrong_shape_are_refused():
    """A mean over the batch would weigh ranks, not samples."""
    y = torch.zeros(3)

    assert checked_losses(torch.zeros(3), y).shape == (3,)
    with pytest.raises(TaskError, match=r"losses of the task are shape \(\); expected one loss per sample, shape \(3,\)"):
        checked_losses(torch.zeros(()), y)
    with pytest.raises(TaskError, match="sums of the task are list; expected a vector"):
        checked_sums([1, 2])


@pytest.mark.ranks
def test_masks_do_not_fit_classification_on_any_rank(pool, tmp_path):
    """A `code:` model may be given any data; the task says what does not fit."""
    data = {"name": "synthetic", "args": {"task": "segmentation", "num_samples": 32, "image_size": 8}}
    spec = small_spec(1, task="segmentation", model={"name": "code:tests.support.user_models:plain"}, data=data)
    run, *_ = run_job(pool, spec, tmp_path)

    assert run.failure.code is FailureCode.TASK_ERROR
    assert "use a segmentation model" in run.failure.message
