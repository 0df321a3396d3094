"""Tests of worker/compilation.py: real Inductor on a tiny model."""

from __future__ import annotations

import pytest

from tests.support import user_models
from tests.support.jobs import FailureCode, run_job, small_spec
from tests.support.ranks import RankPool
from worker.compilation import COMPILATION_TIMEOUT_S, blame_compiler, patience
from worker.errors import PeerLostError, TaskError
from worker.settings import WorkerSettings

# Two branches, so that an exchanged order of norms would show; three batches of 6 and one of 4.
SPEC = {
    "model": {"name": f"code:{user_models.__name__}:Branches"},
    "data": {"name": "synthetic", "args": {"num_samples": 22, "num_test_samples": 4, "image_size": 8}},
    "batch_size": 6,
    "steps": 4,
}
ANSWER_TIMEOUT_S = 300.0


@pytest.mark.ranks
def test_a_compiled_model_and_compiled_norms_train_alike(tmp_path):
    """On two ranks the losses are those of the model as it is, up to single precision; the first compilation is not taken for a hang.

    Norms are compiled where there is a compiler, whether asked for or not.
    """
    losses = {}
    with RankPool(ANSWER_TIMEOUT_S) as pool:
        for mode in ("off", "norm", "model"):
            storage = tmp_path / mode
            storage.mkdir()
            run, *_ = run_job(pool, small_spec(2, **SPEC, compile=mode), storage)
            assert run.outcome == "succeeded", run.failure
            losses[mode] = [*run.series("train/loss"), *run.series("val/loss")]

    assert losses["model"] == pytest.approx(losses["off"], rel=1e-4)
    assert losses["norm"] == losses["off"]


def test_a_compiler_that_fails_is_blamed():
    """The message says which switch to turn; other errors, and those without a compiler, pass."""
    from torch._dynamo.exc import Unsupported

    with pytest.raises(TaskError, match=r"compile: model failed: .*no C\+\+ compiler.*; set compile: off"), blame_compiler(_spec("model")):
        raise Unsupported("no C++ compiler", case_name="x")
    with pytest.raises(PeerLostError), blame_compiler(_spec("model")):
        raise PeerLostError("gone")
    with pytest.raises(Unsupported), blame_compiler(_spec("off")):
        raise Unsupported("no C++ compiler", case_name="x")


def test_who_compiles_is_waited_for():
    """Collectives wait longer where ranks compile, and as before where they do not."""
    settings = WorkerSettings(collective_timeout_s=5)

    assert patience(settings, _spec("off")) is settings
    assert patience(settings, _spec("norm")) is settings
    assert patience(settings, _spec("model")).collective_timeout_s == COMPILATION_TIMEOUT_S
    assert patience(WorkerSettings(collective_timeout_s=1e6), _spec("model")).collective_timeout_s == 1e6


@pytest.mark.ranks
def test_a_model_that_raises_in_training_is_told_by_its_own_line(pool, tmp_path):
    """The file and line are the user's, not those of the layer of torch that complained."""
    run, *_ = run_job(pool, small_spec(1, model={"name": f"code:{user_models.__name__}:Failing"}), tmp_path)

    assert run.failure.code is FailureCode.TASK_ERROR
    assert "support/user_models.py:" in run.failure.message
    assert "in forward: RuntimeError: " in run.failure.message


def _spec(mode):
    return small_spec(compile=mode)
