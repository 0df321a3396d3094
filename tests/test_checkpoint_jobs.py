"""What a checkpoint is good for after training, as a user meets it: the real controller, real Ray, real training on the digits."""

import hashlib

import pytest
from safetensors.torch import load_file
from torch import nn

from tests.support.serving import Serving, spec
from worker.models.resnet import ResNet18

pytestmark = pytest.mark.ray
LONGEST_S = 120


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a running controller."""
    serving = Serving(tmp_path_factory.mktemp("home"))
    with serving.start() as client:
        yield client
    serving.close()


def _ended(client, job):
    found = client.wait(job["id"], timeout_s=LONGEST_S)
    assert found["state"] == "succeeded", found["message"]
    return found


def test_a_checkpoint_is_re_estimated_and_exported(client, tmp_path):
    """Jobs like any other, one after the other; each result names where it is from, is downloaded and verified."""
    trained = _ended(client, client.submit(spec(20)))
    made = client.recalibrate(trained["id"], "best", num_samples=640, changes={"resources.workers": 1})
    again = _ended(client, made)
    manifest = client.manifest(again["id"], "latest")

    assert manifest["spec"]["initialize_from"] == f"{trained['id']}/checkpoints/20"
    assert manifest["metrics"]["before/val/accuracy"] == pytest.approx(trained["metrics"]["val/accuracy"])
    assert client.metrics(again["id"], ["before/val/loss"])["series"][0]["points"][0][0] == 0
    difference = client.statistics(again["id"], "latest", against=f"{trained['id']}/checkpoints/20")["layers"]
    assert len(difference) == len(manifest["layers"])
    assert again["progress"]["step"] == 0

    exported = _ended(client, client.export(again["id"], "latest", formats=["plain", "folded", "onnx"]))
    files = client.download(exported["id"], "latest", tmp_path)["files"]
    assert {"plain.safetensors", "folded.safetensors", "model.onnx"} < set(files)
    assert all(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == entry["sha256"] for name, entry in files.items())
    assert ResNet18(1, 10, norm=nn.BatchNorm2d, width=2).load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
