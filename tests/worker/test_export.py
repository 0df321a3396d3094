"""Tests of worker/export.py, and of jobs that train nothing: a checkpoint re-estimated, and brought into other formats."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import syncbn
from tests.support.jobs import JOB, OTHER_JOB, FailureCode, run_job, small_spec
from worker import export
from worker.checkpoint import load, verify
from worker.contract import SpecError, checkpoint_name, checkpoints_directory, parse_spec
from worker.contract.manifest import Manifest
from worker.data.registry import build_data
from worker.models.resnet import ResNet18
from worker.storage.local import LocalStorage

pytestmark = pytest.mark.ranks

OWN = "job_" + "0" * 25 + "C"
ORIGIN = f"{OTHER_JOB}/checkpoints/12"


@pytest.fixture(scope="module")
def trained(pool, tmp_path_factory):
    """A storage with a job of twelve steps on two ranks."""
    storage = tmp_path_factory.mktemp("storage")
    run, *_ = run_job(pool, small_spec(2, steps=12, batch_size=240), storage, job_id=OTHER_JOB)
    assert run.outcome == "succeeded", run.failure
    return storage


def work(pool, storage, workers=1, job_id=OWN, **changes):
    """Run a job without steps on the checkpoint; return what rank 0 said."""
    spec = small_spec(workers, **{"steps": 0, "batch_size": 240, "initialize_from": ORIGIN} | changes)
    return run_job(pool, spec, storage, job_id=job_id, resume=f"{OTHER_JOB}/12")[0]


def tensors(storage, job_id, step):
    """Return the model of a checkpoint."""
    return load(LocalStorage(storage), job_id, step).model


def test_a_checkpoint_is_re_estimated_alike_on_any_number_of_ranks(pool, trained):
    """Parameters stay, statistics become those of the population, whatever the world size; quality is told before and after."""
    models = {}
    for workers in (1, 3):
        job_id = OWN[:-1] + "DE"[workers // 3]
        run = work(pool, trained, workers, job_id, recalibrate={"num_samples": 1000})
        assert run.outcome == "succeeded", run.failure
        (manifest,) = run.of("checkpoint")
        assert (manifest["step"], manifest["spec"]["initialize_from"]) == (0, ORIGIN)
        assert {"before/val/accuracy", "before/val/loss", "val/accuracy", "val/loss"} <= set(manifest["metrics"])
        assert run.series("before/val/loss") == [manifest["metrics"]["before/val/loss"]]
        models[workers] = tensors(trained, job_id, 0)
    before = tensors(trained, OTHER_JOB, 12)

    for name, tensor in models[1].items():
        torch.testing.assert_close(models[3][name], tensor, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(tensor, before[name]) is ("running" not in name and "tracked" not in name), name


def test_a_job_that_begins_again_tells_of_the_checkpoint_it_began_with(pool, trained):
    """Its own is there already, with other statistics; what was measured before is still what is told."""
    job_id = OWN[:-1] + "K"
    first = work(pool, trained, 1, job_id, recalibrate={"num_samples": 1000})
    spec = small_spec(1, steps=0, batch_size=240, initialize_from=ORIGIN, recalibrate={"num_samples": 1000})
    again = run_job(pool, spec, trained, job_id=job_id, attempt=2, resume=f"{job_id}/0")[0]

    assert again.outcome == "succeeded", again.failure
    assert again.series("before/val/loss") == first.series("before/val/loss") != again.series("val/loss")
    assert again.of("checkpoint") == first.of("checkpoint")


def test_what_was_is_what_the_other_job_measured(pool, trained):
    """Evaluated alone, without re-estimation, a checkpoint has the metrics of its manifest."""
    run = work(pool, trained, job_id=OWN[:-1] + "F")
    source = LocalStorage(trained).published(OTHER_JOB)[12]

    assert run.of("checkpoint")[0]["metrics"] == pytest.approx(source.metrics, abs=1e-5)


def test_the_estimator_is_a_choice(pool, trained):
    """The average over batches differs from the population."""
    runs = {}
    for job_id, estimator in ((OWN[:-1] + "G", "exact"), (OWN[:-1] + "H", "mean_of_batches")):
        asked = {"num_samples": 1000, "estimator": estimator}
        assert work(pool, trained, job_id=job_id, recalibrate=asked).outcome == "succeeded"
        runs[estimator] = tensors(trained, job_id, 0)
    assert any(not torch.equal(tensor, runs["exact"][name]) for name, tensor in runs["mean_of_batches"].items() if "running_var" in name)


@pytest.fixture(scope="module")
def exported(pool, trained):
    """The directory of a checkpoint with every export, and its manifest as announced."""
    run = work(pool, trained, 2, export=["plain", "folded", "onnx"])
    assert run.outcome == "succeeded", run.failure
    return trained / checkpoints_directory(OWN) / checkpoint_name(0), Manifest.model_validate(run.of("checkpoint")[0])


def test_exports_are_files_of_the_checkpoint_with_their_differences(exported, trained):
    """Digested like every other file, and measured against the trained model; resuming does not read them."""
    directory, manifest = exported

    assert verify(directory) == manifest
    assert {name: entry.format for name, entry in manifest.exports.items()} == {
        "plain.safetensors": "plain",
        "folded.safetensors": "folded",
        "model.onnx": "onnx",
    }
    assert set(manifest.exports) < set(manifest.files)
    assert all(0 <= entry.max_difference < 1e-4 and entry.num_samples == 3 for entry in manifest.exports.values())
    (directory / "model.onnx").write_bytes(b"damaged")
    assert load(LocalStorage(trained), OWN, 0).manifest == manifest


def test_exports_load_without_the_service_and_compute_the_same(exported):
    """Plain into torch.nn layers, folded without any norm."""
    directory, _ = exported
    images = torch.from_numpy(build_data(small_spec().data, 0).test.batch(np.arange(5), 0)[0])
    plain = ResNet18(1, 10, norm=nn.BatchNorm2d, width=4).eval()
    plain.load_state_dict(safetensors.torch.load_file(directory / "plain.safetensors"), strict=True)
    folded = syncbn.fold_batchnorm(ResNet18(1, 10, norm=nn.BatchNorm2d, width=4).eval())
    folded.load_state_dict(safetensors.torch.load_file(directory / "folded.safetensors"), strict=True)

    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_be_folded_fails_by_name(pool, trained):
    """With the layer; nothing is published, and plain would have gone."""
    norm = {"kind": "sync_bn", "placement": "after_activation"}
    model = {"name": "resnet18", "args": {"width": 4}}
    source = OWN[:-1] + "J"
    assert run_job(pool, small_spec(1, steps=2, model=model, norm=norm), trained, job_id=source)[0].outcome == "succeeded"
    spec = small_spec(1, steps=0, norm=norm, initialize_from=f"{source}/checkpoints/2", export=["plain", "folded"])
    run = run_job(pool, spec, trained, job_id=JOB, resume=f"{source}/2")[0]

    assert (run.outcome, run.failure.code) == ("failed", FailureCode.EXPORT_FAILED)
    assert "cannot be folded" in run.failure.message
    assert LocalStorage(trained).published(JOB) == {}


def test_a_file_that_computes_something_else_is_refused(trained, tmp_path, monkeypatch):
    """The verification can fail: a fold that is wrong by a hundredth."""
    fold = syncbn.fold_batchnorm

    def wrong(model):
        folded = fold(model)
        with torch.no_grad():
            next(folded.parameters()).mul_(1.01)
        return folded

    spec = small_spec(1, steps=0, initialize_from=ORIGIN, export=["folded"])
    exporter = export.Exporter(spec, build_data(spec.data, 0))
    assert set(exporter(tmp_path, tensors(trained, OTHER_JOB, 12))) == {"folded.safetensors"}
    monkeypatch.setattr(syncbn, "fold_batchnorm", wrong)
    with pytest.raises(export.ExportError, match=r"export folded differs from the trained model by .*leave this format out"):
        exporter(tmp_path, tensors(trained, OTHER_JOB, 12))


def test_a_missing_package_is_named_with_its_extra(trained, tmp_path, monkeypatch):
    """And nothing of torch's own about it."""
    monkeypatch.setattr(export, "_ONNX_PACKAGES", ("onnx", "no_such_package"))
    spec = small_spec(1, steps=0, initialize_from=ORIGIN, export=["onnx"])
    with pytest.raises(export.ExportError, match=r"needs no_such_package, .*pip install 'syncbn\[export\]' on every node"):
        export.Exporter(spec, build_data(spec.data, 0))(tmp_path, tensors(trained, OTHER_JOB, 12))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 0}, "initialize_from beside steps: 0"),
        ({"steps": 3, "initialize_from": ORIGIN, "export": ["onnx"]}, "steps: 0 beside export"),
        ({"steps": 0, "initialize_from": ORIGIN, "export": ["tflite"]}, "plain"),
    ],
)
def test_a_spec_without_steps_needs_a_checkpoint(change, told):
    """And only such a spec exports."""
    raw = json.loads(small_spec().model_dump_json()) | {"epochs": None} | change
    with pytest.raises(SpecError, match=told):
        parse_spec(raw)
