"""Tests of training on data from files: whole jobs on real ranks."""

import pytest

from tests.support.images import truncate, write_classes
from tests.support.jobs import JOB, OTHER_JOB, FailureCode, run_job, small_spec
from worker.contract.spec import RecalibrateSpec

pytestmark = pytest.mark.ranks

TRANSFORMS = [
    {"name": "random_crop", "size": 8, "padding": 1},
    {"name": "flip"},
    {"name": "color", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
    {"name": "normalize", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    {"name": "mixup", "alpha": 0.5},
]


def _spec(folder, workers, steps=4, **data):
    section = {"name": "imagefolder", "path": str(folder), "split": {"validation": 0.2}, "transforms": TRANSFORMS} | data
    return small_spec(workers, data=section, steps=steps, batch_size=9, precision="fp64", epochs=None)


@pytest.fixture
def folder(tmp_path):
    """Thirty images of two classes; 24 are trained on: two batches of 9 and one of 6 per epoch."""
    return write_classes(tmp_path / "photos", {"a": 12, "b": 18})


def _run(pool, tmp_path, name, spec):
    storage = tmp_path / name
    storage.mkdir()
    return run_job(pool, spec, storage)


def test_any_number_of_ranks_trains_alike_on_augmented_images(pool, tmp_path, folder):
    """Crops, flips, colours and mixup, one broken file among them: 1, 2 and 3 ranks have the same losses, into the second epoch.

    However they load: in the step's thread, ahead of it, or in processes.
    """
    truncate(folder / "b" / "004.png")
    truncate(folder / "a" / "004.png")
    runs = {}
    for workers, loading in ((1, {"prefetch": 0}), (2, {"loader_workers": 1}), (3, {})):
        runs[workers] = _run(pool, tmp_path, str(workers), _spec(folder, workers, max_bad=2, **loading))
        assert [run.outcome for run in runs[workers]] == ["succeeded"] * workers, runs[workers][0].failure

    losses, val_losses = (runs[1][0].series(name) for name in ("train/loss", "val/loss"))
    assert len(losses) == 4
    for workers in (2, 3):
        assert runs[workers][0].series("train/loss") == pytest.approx(losses, abs=1e-9)
        assert runs[workers][0].series("val/loss") == pytest.approx(val_losses, abs=1e-9)
    named = {workers: sorted(event["message"] for run in said for event in run.of("warning")) for workers, said in runs.items()}
    assert named[1] == named[2] == named[3]
    assert any("004.png cannot be read" in message for message in named[1])
    assert all(wait_s >= 0 for wait_s in runs[2][0].series("data/wait_s"))


def test_a_broken_file_ends_the_job_by_name(pool, tmp_path, folder):
    """Unless the spec allows for it: whichever rank met it says so, the others that it was not them."""
    for path in folder.glob("a/00*.png"):
        truncate(path)
    runs = _run(pool, tmp_path, "0", _spec(folder, 2))

    codes = [run.failure.code for run in runs]
    causes = [run.failure.message for run in runs if run.failure.code is FailureCode.BAD_DATA]
    assert set(codes) <= {FailureCode.BAD_DATA, FailureCode.PEER_LOST}
    assert causes
    assert "samples cannot be read, among them" in causes[0]
    assert f"{folder}/a/00" in causes[0]
    assert "expected at most 0 in one pass over the data; mend or remove the files, or raise data.max_bad" in causes[0]


def test_two_evaluations_of_one_step_are_two_passes(pool, tmp_path, folder):
    """A job that evaluates before and after it re-estimates meets the same broken file twice; one is allowed for, in a pass."""
    held_out = write_classes(tmp_path / "held-out", {"a": 3, "b": 3})
    truncate(held_out / "a" / "001.png")
    spec = _spec(folder, 1, split={"validation": str(held_out)}, max_bad=1)
    assert _run(pool, tmp_path, "0", spec)[0].outcome == "succeeded"
    changes = {"steps": 0, "initialize_from": f"{JOB}/checkpoints/4", "recalibrate": RecalibrateSpec(num_samples=18)}
    again = run_job(pool, spec.model_copy(update=changes), tmp_path / "0", job_id=OTHER_JOB, resume=f"{JOB}/4")[0]

    assert again.outcome == "succeeded", again.failure
    assert len([event for event in again.of("warning") if "001.png cannot be read" in event["message"]]) == 2
