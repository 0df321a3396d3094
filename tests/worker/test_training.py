"""Tests of worker/training.py that need one step; trajectories are in test_session.py and test_invariance.py."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import JOB, run_job, small_spec
from worker.contract import checkpoint_name, checkpoints_directory
from worker.data.registry import build_data
from worker.models.norms import inference_norm
from worker.models.registry import build_model

CLIP = 0.01


@pytest.mark.ranks
@pytest.mark.parametrize("precision", ["fp64", "fp16"])
@pytest.mark.parametrize("clip", [CLIP, None])
def test_the_gradient_of_the_global_batch_is_clipped(pool, tmp_path, precision, clip):
    """Without momentum, no step is longer than the rate times the clipped gradient: on two ranks, and with scaled gradients.

    In fp16 the first steps are left out until the scale fits.
    """
    spec = small_spec(2, steps=6, precision=precision, clip_norm=clip, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0})
    run, *_ = run_job(pool, spec, tmp_path)
    assert run.outcome == "succeeded", run.failure
    before = build_model(spec.model, spec.norm, inference_norm(spec.norm), build_data(spec.data, 0).train, 0)
    after = load_file(tmp_path / checkpoints_directory(JOB) / checkpoint_name(6) / "model.safetensors")
    moved = torch.cat([(after[name].double() - parameter.double()).flatten() for name, parameter in before.named_parameters()])

    assert moved.norm() > 0
    assert (moved.norm() <= 6 * 0.1 * CLIP * 1.001) == (clip is not None)


def test_volumes_have_a_layout_of_their_own():
    """channels_last of images and of volumes are two formats of torch."""
    from worker.training import Precision

    precision = Precision(small_spec(channels_last=True), torch.device("cpu"))
    for shape, layout in (((2, 3, 4, 4), torch.channels_last), ((2, 3, 4, 4, 4), torch.channels_last_3d)):
        x, _ = precision.place(torch.zeros(shape), torch.zeros(2))
        conv = precision.place_model({4: torch.nn.Conv2d, 5: torch.nn.Conv3d}[len(shape)](3, 8, 3))
        assert x.is_contiguous(memory_format=layout)
        assert conv.weight.is_contiguous(memory_format=layout)
