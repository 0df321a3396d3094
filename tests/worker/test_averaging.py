"""Tests of worker/averaging.py; that an average is evaluated, saved and resumed is tested with whole jobs below."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.jobs import JOB, run_job, small_spec
from worker.averaging import Average, weight_after
from worker.contract import checkpoint_name, checkpoints_directory
from worker.contract.spec import EmaSpec, SwaSpec
from worker.sampler import Plan

# Ten epochs of four steps.
PLAN = Plan(40, 10, 10, None)


def _followed(spec, num_steps):
    """The values of a parameter that equals the step, averaged after each step."""
    model = nn.BatchNorm1d(1)
    average = Average(spec, PLAN, model)
    for step in range(1, num_steps + 1):
        for tensor in (model.weight, model.running_mean, model.num_batches_tracked):
            tensor.detach().fill_(step)
        average.follow(model, step)
    return average.model


def test_ema_is_the_recursion_written_out():
    """It starts at the model, forgets quickly at first, and settles at the asked decay; running statistics go along, counts are copied."""
    expected = 1.0
    for step in range(1, 31):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    found = _followed(EmaSpec(kind="ema", decay=0.6), 30)

    assert found.weight.item() == pytest.approx(expected)
    assert int(found.num_batches_tracked) == 30
    assert weight_after(EmaSpec(kind="ema", decay=0.999), PLAN, 10**6) == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("start", "num_steps", "mean_of"),
    [(0.0, 40, range(4, 41, 4)), (0.5, 40, range(24, 41, 4)), (0.5, 20, [20]), (0.5, 30, [24, 28]), (0.45, 40, range(20, 41, 4))],
)
def test_swa_is_the_mean_of_the_ends_of_epochs_after_its_start(start, num_steps, mean_of):
    """Before the start it is the model itself; within an epoch it stays."""
    found = _followed(SwaSpec(kind="swa", start=start), num_steps).weight.item()

    assert found == pytest.approx(sum(mean_of) / len(mean_of))


@pytest.mark.ranks
@pytest.mark.parametrize("average", [{"kind": "ema", "decay": 0.9}, {"kind": "swa", "start": 0.4}], ids=["ema", "swa"])
def test_an_average_is_evaluated_saved_and_resumed_bit_for_bit(pool, tmp_path, average):
    """The download is the average, the figures are its own, and a resumed job goes on as if it had never stopped."""
    data = {"name": "synthetic", "args": {"num_samples": 20, "num_test_samples": 6, "image_size": 8}}
    spec = small_spec(2, epochs=3, steps=None, batch_size=7, data=data, average=average)
    whole, *_ = run_job(pool, spec, tmp_path)
    saved = tmp_path / checkpoints_directory(JOB) / checkpoint_name(9)
    uninterrupted = {name: load_file(saved / name) for name in ("model.safetensors", "training.safetensors")}
    saved.rename(tmp_path / "aside")
    again, *_ = run_job(pool, spec, tmp_path, attempt=2, resume=f"{JOB}/3")

    assert whole.outcome == again.outcome == "succeeded", again.failure
    assert again.series("train/loss") == whole.series("train/loss")[3:]
    assert again.series("val/loss") == whole.series("val/loss")[1:]
    for name, tensors in uninterrupted.items():
        resumed = load_file(saved / name)
        assert [key for key in tensors if not key.startswith("generator") and not torch.equal(resumed[key], tensors[key])] == []
    trained, averaged = uninterrupted["training.safetensors"], uninterrupted["model.safetensors"]
    assert not torch.equal(trained["model.conv1.weight"], averaged["conv1.weight"])
    assert not torch.equal(trained["model.bn1.running_mean"], averaged["bn1.running_mean"])
