"""Every task and model trains alike on any number of ranks: whole jobs on real ranks, in double precision."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import JOB, run_job, small_spec
from worker.contract import checkpoint_name, checkpoints_directory

pytestmark = pytest.mark.ranks

# Batches of 5, 5 and 2 samples: uneven shares on 2 and 3 ranks, and one rank of three without a sample; and a second epoch.
COMMON = {"precision": "fp64", "batch_size": 5, "steps": 5, "epochs": None}
# Where the last maps have few positions, a batch of 2 has next to no variance, and its inverse magnifies rounding from step to step.
ROOMY = {"batch_size": 12}
# Fifty layers magnify it a hundredfold per step, from 4e-15 on; so three steps.
GENTLE = ROOMY | {"optimizer": {"name": "sgd", "lr": 0.01}, "steps": 3}


def _images(**args):
    return {"name": "synthetic", "args": {"num_samples": 12, "num_test_samples": 7, "image_size": 16, **args}}


def _volumes(dimensions, side):
    return _images(task="segmentation", dimensions=dimensions, image_size=side, channels=1, num_classes=3)


JOBS = {
    "unet 2-D": {"task": "segmentation", "model": {"name": "unet", "args": {"width": 4, "depth": 2}}, "data": _volumes(2, 10)},
    "unet 3-D": {"task": "segmentation", "model": {"name": "unet", "args": {"width": 4, "depth": 2}}, "data": _volumes(3, 7)},
    "hybrid": {"model": {"name": "hybrid", "args": {"width": 4, "blocks": 1}}, "data": _images()},
    "cspdarknet": {
        "task": {"name": "classification", "args": {"label_smoothing": 0.1}},
        "model": {"name": "cspdarknet", "args": {"width": 4}},
        "data": _images(num_samples=31, image_size=64),
        **ROOMY,
    },
    "resnet50": {"model": {"name": "resnet50", "args": {"width": 2}}, "data": _images(num_samples=31), "accumulate": 2, **GENTLE},
    "ema, clipped, scaled": {
        "average": {"kind": "ema", "decay": 0.9},
        "clip_norm": 0.5,
        "optimizer": {"name": "sgd", "lr": 0.05, "lr_batch_size": 10},
        "data": _images(),
    },
    "swa": {"average": {"kind": "swa", "start": 0.5}, "data": _images(), "checkpoint": {"every_epochs": 1}},
}


def _run(pool, storage, workers, **spec):
    storage.mkdir()
    whole = small_spec(workers, **COMMON | spec)
    first, *_ = run_job(pool, whole, storage)
    assert first.outcome == "succeeded", first.failure
    evaluations = [data["values"] for data in first.of("metrics") if "val/loss" in data["values"]]
    tensors = load_file(storage / checkpoints_directory(JOB) / checkpoint_name(whole.steps) / "model.safetensors")
    return first.series("train/loss"), evaluations, tensors


@pytest.mark.parametrize("job", JOBS)
def test_any_number_of_ranks_trains_alike(pool, tmp_path, job):
    """Losses, every metric, parameters and running statistics agree to 1e-9."""
    losses, evaluations, tensors = _run(pool, tmp_path / "1", 1, **JOBS[job])

    assert len(losses) >= 3
    for workers in (2, 3) if job.startswith("unet") else (3,):
        others, other_evaluations, other_tensors = _run(pool, tmp_path / str(workers), workers, **JOBS[job])
        assert others == pytest.approx(losses, abs=1e-9)
        assert other_evaluations == [pytest.approx(values, abs=1e-9) for values in evaluations]
        for name, expected in tensors.items():
            torch.testing.assert_close(other_tensors[name], expected, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
