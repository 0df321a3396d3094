"""Tests of worker/predict.py: what a stranger does with a checkpoint."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.support.jobs import JOB, run_job, small_spec
from worker import predict
from worker.contract import checkpoint_name, checkpoints_directory
from worker.models.resnet import ResNet18

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def trained(pool, tmp_path_factory):
    """A checkpoint of a job on two ranks, and its manifest."""
    storage = tmp_path_factory.mktemp("storage")
    run, *_ = run_job(pool, small_spec(2, steps=12, batch_size=240), storage)
    assert run.outcome == "succeeded", run.failure
    return storage / checkpoints_directory(JOB) / checkpoint_name(12), run.of("checkpoint")[-1]


def test_single_samples_in_plain_layers_are_as_good_as_the_manifest_says(trained):
    """The command predicts each held-out sample alone, with torch.nn.BatchNorm2d, and gets the accuracy of the evaluation on two ranks."""
    directory, manifest = trained
    done = subprocess.run([sys.executable, "-m", "worker.predict", str(directory), "--json"], capture_output=True, check=True, timeout=60)
    report = json.loads(done.stdout)

    assert (report["num_samples"], report["norm_class"]) == (359, "BatchNorm2d")
    num_correct = sum(sample["predicted"] == sample["label"] for sample in report["samples"])
    assert report["metrics"]["accuracy"] == num_correct / 359 == pytest.approx(manifest["metrics"]["val/accuracy"], abs=1 / 359)
    assert report["metrics"]["loss"] == pytest.approx(manifest["metrics"]["val/loss"], abs=1e-4)
    assert [sample["index"] for sample in report["samples"]] == list(range(359))


def test_the_file_loads_strictly_into_a_model_built_by_hand(trained):
    """No code of the service is needed: safetensors, the architecture, and plain layers."""
    from torch import nn

    directory, _ = trained
    model = ResNet18(1, 10, norm=nn.BatchNorm2d, width=4)

    assert model.load_state_dict(load_file(directory / "model.safetensors"), strict=True)


def test_a_table_for_people(trained, capsys):
    """Some predictions, then the accuracy."""
    directory, _ = trained

    assert predict.main([str(directory), "--samples", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("sample    0   predicted")
    assert lines[-1].startswith("3 samples, one by one, with BatchNorm2d: loss ")


def test_a_damaged_checkpoint_is_refused(trained, tmp_path, capsys):
    """Exit code 1 and one sentence, before anything is loaded."""
    directory, _ = trained
    copy = tmp_path / directory.name
    shutil.copytree(directory, copy)
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"x")

    assert predict.main([str(copy)]) == 1
    assert "model.safetensors has" in capsys.readouterr().err
    assert predict.main([str(tmp_path)]) == 1
    assert "is no manifest of a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("samples", ["0", "-1", "many"])
def test_wrong_usage(trained, samples):
    """Exit code 2, as everywhere."""
    with pytest.raises(SystemExit) as ended:
        predict.main([str(trained[0]), "--samples", samples])
    assert ended.value.code == 2
