"""What a checkpoint is good for after training, as a user meets it: the real controller, real Ray, real training on the digits."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.support.serving import Serving, spec
from worker.contract import checkpoint_name, checkpoints_directory, parse_spec
from worker.data import digits
from worker.data.registry import build_data
from worker.models.resnet import ResNet18
from worker.predict import predict

pytestmark = pytest.mark.ray
LONGEST_S = 120


@pytest.fixture
def serving(tmp_path):
    """A controller on a home of its own."""
    serving = Serving(tmp_path / "home")
    yield serving
    serving.close()


@pytest.fixture
def client(serving):
    """A client of the running controller."""
    with serving.start() as client:
        yield client


def _ended(client, job):
    found = client.wait(job["id"], timeout_s=LONGEST_S)
    assert found["state"] == "succeeded", found["message"]
    return found


def test_a_checkpoint_is_re_estimated_tried_out_and_exported(client, serving, tmp_path):
    """On another number of workers; the result names where it is from, classifies an image, is downloaded and verified."""
    trained = _ended(client, client.submit(spec(20)))
    made = client.recalibrate(
        trained["id"], "best", num_samples=640, changes={"resources.workers": 1, "export": ["plain", "folded", "onnx"]}
    )
    again = _ended(client, made)
    manifest = client.manifest(again["id"], "latest")

    assert manifest["spec"]["initialize_from"] == f"{trained['id']}/checkpoints/20"
    assert manifest["inputs"]["class_names"] == list("0123456789")
    assert manifest["metrics"]["before/val/accuracy"] == pytest.approx(trained["metrics"]["val/accuracy"])
    assert client.metrics(again["id"], ["before/val/loss"])["series"][0]["points"][0][0] == 0
    difference = client.statistics(again["id"], "latest", against=f"{trained['id']}/checkpoints/20")["layers"]
    assert len(difference) == len(manifest["layers"])
    assert again["progress"]["step"] == 0

    # The first held-out digit, alone, as `worker.predict` sees it.
    image = tmp_path / "digit.png"
    pixels = build_data(parse_spec(spec(1)).data, 0).test.batch(np.array([0]), 0)[0][0, 0] * digits.STD + digits.MEAN
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(image)
    predicted = client.predict(again["id"], "latest", image)["predictions"]
    directory = serving.home / "storage" / checkpoints_directory(again["id"]) / checkpoint_name(0)
    assert predicted[0]["label"] == predict(directory, 1).samples[0].predicted
    assert predicted[0]["name"] == str(predicted[0]["label"])

    files = client.download(again["id"], "latest", tmp_path)["files"]
    assert {"plain.safetensors", "folded.safetensors", "model.onnx"} < set(files)
    assert all(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == entry["sha256"] for name, entry in files.items())
    assert ResNet18(1, 10, norm=nn.BatchNorm2d, width=2).load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
