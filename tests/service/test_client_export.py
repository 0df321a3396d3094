"""What a job measured, in other tools: TensorBoard's event files, MLflow's runs."""

import json
import sys

import pytest

from service.client import Client
from service.client.history import Point, points
from tests.support.live_service import SPEC


@pytest.fixture(scope="module")
def client(service):
    """A client as one has it on the controller's machine."""
    with Client(home=service.home) as client:
        yield client


@pytest.fixture(scope="module")
def job(client):
    """A job that has succeeded."""
    return client.wait(client.submit({**SPEC, "labels": {"team": "vision"}})["id"], timeout_s=20, interval_s=0.05)


def _metrics(seq, step, **values):
    return {"seq": seq, "at": f"2026-11-20T10:00:{seq:02d}Z", "type": "metrics", "data": {"step": step, "values": values}}


def test_a_step_that_was_done_again_counts_as_it_was_done_last():
    """After a restart from a checkpoint there is one value a step, in order."""
    events = [_metrics(1, 1, loss=4.0), _metrics(2, 2, loss=3.0), _metrics(3, 3, loss=2.0), _metrics(4, 2, loss=2.5)]
    assert [(point.step, point.value) for point in points(events)] == [(1, 4.0), (2, 2.5), (3, 2.0)]
    assert points(events)[0] == Point("loss", 1, 4.0, 1795168801.0)


def _read(directory):
    """Return what TensorBoard itself reads of a directory: by tag the steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return {tag: [(one.step, one.value) for one in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(client, job, tmp_path):
    """Every metric with every step, and once, also when it is exported again."""
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    for _ in range(2):
        path = client.export_tensorboard(job.id, tmp_path)
    assert [path] == list((tmp_path / job.id).iterdir())
    found = _read(tmp_path / job.id)
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert set(found) == {"train/loss", "val/accuracy", "throughput/samples_per_s"}


def test_the_command_says_how_to_look_at_it(run, job):
    """I need not know where the file went."""
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    assert "tensorboard --logdir board" in run("export-tensorboard", job.id, "board").stderr
    assert json.loads(run("export-tensorboard", job.id, "board", "--json").stdout)["path"].startswith(
        f"board/{job.id}/events.out.tfevents."
    )


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("tensorboard.summary.writer.record_writer", ("export-tensorboard", "{job}", "board")),
        ("mlflow", ("mirror", "{job}", "--to", "mlflow")),
    ],
)
def test_without_the_package_the_extra_is_named(run, job, monkeypatch, module, args):
    """I am told what to install, in one sentence."""
    monkeypatch.setitem(sys.modules, module, None)
    result = run(*(arg.format(job=job.id) for arg in args))
    assert result.exit_code == 1
    assert f"pip install 'syncbn[{module.partition('.')[0]}]'" in " ".join(result.stderr.split())


def test_mlflow_has_the_job_as_a_run(client, job, tmp_path):
    """Parameters, metrics, state and labels; mirrored again, nothing is there twice."""
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed: it is no dependency of the tests")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = client.mirror_to_mlflow(job.id, tracking_uri=uri)
    assert client.mirror_to_mlflow(job.id, tracking_uri=uri) == run_id
    there = mlflow.MlflowClient(tracking_uri=uri)
    found = there.get_run(run_id)
    assert (found.info.run_name, found.info.status) == ("good", "FINISHED")
    assert (found.data.params["model.name"], found.data.tags["label.team"]) == ("resnet18", "vision")
    assert [(one.step, one.value) for one in there.get_metric_history(run_id, "train/loss")] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
