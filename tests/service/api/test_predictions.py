"""Predictions over HTTP: the real process beside the application, a real model, hostile bytes."""

import io

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from service import predictor
from tests.service.api.world import running
from tests.support.predictions import digit, encoded, published, small_model
from tests.support.serving import until
from worker.predictor import MAX_MEMORY_BYTES

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One application, so that the process is started as seldom as may be."""
    with running(tmp_path_factory.mktemp("home")) as world:
        yield world


@pytest.fixture(scope="module")
def model():
    """A model with random statistics, in evaluation mode."""
    return small_model()


@pytest.fixture(scope="module")
def address(shared, model):
    """Of the predictions of a checkpoint."""
    return published(shared, model)


def process_of(world):
    """Return the process that predicts."""
    return psutil.Process(world.client.app.state.context.predictor._process.pid)


@pytest.mark.parametrize("number", [0, 7])
def test_an_image_is_classified_by_the_running_statistics(shared, address, model, number):
    """As the model does it in plain PyTorch, one sample alone; the five most probable classes."""
    x, image = digit(number)
    with torch.no_grad():
        wanted = torch.softmax(model(x).double(), 1)[0].topk(5)
    answer = shared.client.post(address, content=image, headers=PNG)

    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["step"] == 10
    assert [one["label"] for one in found["predictions"]] == wanted.indices.tolist()
    # The pixels went through 8 bits.
    assert [one["probability"] for one in found["predictions"]] == pytest.approx(wanted.values.tolist(), abs=0.02)


def test_any_size_and_colour_is_brought_to_what_the_model_takes(shared, address):
    """A large colour JPEG."""
    photo = encoded(np.full((300, 400, 3), 200, np.uint8), "JPEG")
    answer = shared.client.post(address, content=photo, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200, answer.text
    assert sum(one["probability"] for one in answer.json()["predictions"]) <= 1 + 1e-9


def test_the_process_is_kept_and_knows_no_secret(shared, address):
    """The second image is answered by the process of the first, whose environment and memory are bounded."""
    pids = []
    for number in (1, 2):
        assert shared.client.post(address, content=digit(number)[1], headers=PNG).status_code == 200
        pids.append(process_of(shared).pid)
    process = psutil.Process(pids[0])
    assert pids[0] == pids[1]
    assert not any(name.startswith(("SYNCBN_", "AWS_", "RAY_")) for name in process.environ())
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert process.rlimit(psutil.RLIMIT_AS)[0] == MAX_MEMORY_BYTES


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(100), b"<svg/>"], ids=["nothing", "gif", "png", "svg"])
def test_what_is_no_image_is_refused_and_the_process_goes_on(shared, address, content):
    """422, and the next image is answered."""
    answer = shared.client.post(address, content=content, headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image"), answer.text
    assert shared.client.post(address, content=digit(3)[1], headers=PNG).status_code == 200


def test_an_image_that_unfolds_without_bound_is_refused(shared, address):
    """A hundred megapixels of one colour in a few kilobytes."""
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    answer = shared.client.post(address, content=bomb.getvalue(), headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image"), answer.text


def test_too_many_bytes_and_another_type_are_refused(shared, address):
    """Before anything is started."""
    assert shared.client.post(address, content=bytes(17 << 20), headers=PNG).json()["code"] == "body_too_large"
    assert (
        shared.client.post(address, content=b"{}", headers={"Content-Type": "application/json"}).json()["code"] == "unsupported_media_type"
    )


def test_classes_have_the_names_that_the_data_set_knows(shared, model):
    """Beside their numbers; null where it knows none."""
    names = [f"species {number}" for number in range(10)]
    for class_names in (names, None):
        answer = shared.client.post(published(shared, model, class_names=class_names), content=digit(1)[1], headers=PNG)
        told = answer.json()["predictions"]
        assert [one["name"] for one in told] == [class_names and class_names[one["label"]] for one in told]


def test_a_process_that_is_killed_is_503_and_the_next_image_starts_another(shared, address):
    """Killed while it is idle, it is replaced at once."""
    assert shared.client.post(address, content=digit(4)[1], headers=PNG).status_code == 200
    before = process_of(shared)
    before.kill()
    before.wait(10)
    answers = [shared.client.post(address, content=digit(4)[1], headers=PNG) for _ in range(2)]
    # The event loop may not have heard of its end at the first.
    assert answers[0].status_code in {200, 503}
    assert answers[1].status_code == 200
    assert process_of(shared).pid != before.pid


def test_a_process_that_is_slow_is_ended(shared, address, monkeypatch):
    """It holds nobody up for longer than is said."""
    assert shared.client.post(address, content=digit(4)[1], headers=PNG).status_code == 200
    slow = process_of(shared)
    slow.suspend()
    monkeypatch.setattr(predictor, "ANSWER_TIMEOUT_S", 0.2)
    answer = shared.client.post(address, content=digit(5)[1], headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (503, "prediction_unavailable")
    assert "did not answer in time" in answer.json()["detail"]
    assert not slow.is_running()


def test_a_controller_without_torch_says_what_is_missing(shared, model, monkeypatch):
    """The process ends before it answers."""
    monkeypatch.setattr(predictor, "COMMAND", ("false",))
    answer = shared.client.post(published(shared, model, seed=1), content=digit(6)[1], headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (503, "prediction_unavailable")
    assert "install syncbn[worker] there" in answer.json()["detail"]


def test_an_unused_process_ends(shared, address, monkeypatch):
    """After a while, with nobody asking."""
    monkeypatch.setattr(predictor, "IDLE_S", 0.05)
    shared.call(shared.client.app.state.context.predictor.close)
    assert shared.client.post(address, content=digit(4)[1], headers=PNG).status_code == 200
    until(lambda: shared.client.app.state.context.predictor._process is None, 30, "the process to end")


@pytest.mark.parametrize(
    ("changes", "inputs", "reason"),
    [
        (
            {"task": "segmentation", "model": {"name": "unet"}, "data": {"name": "synthetic", "args": {"task": "segmentation"}}},
            (1, 8, 8),
            "its task is",
        ),
        ({"model": {"name": "code:mine:build"}}, (1, 8, 8), "code of your own"),
        ({}, (4, 8, 8), "expected images of 1 or 3 channels"),
        ({}, (1, 8, 8, 8), "expected images of 1 or 3 channels"),
        ({"model": {"name": "resnet18", "args": {"width": 8}}}, (1, 8, 8), "does not fit the model"),
    ],
)
def test_what_cannot_be_predicted_is_said_with_the_reason(shared, model, changes, inputs, reason):
    """409, with what to do."""
    answer = shared.client.post(published(shared, model, inputs=inputs, **changes), content=digit(0)[1], headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_predictable"), answer.text
    assert reason in answer.json()["detail"]


def test_a_model_that_computes_no_number_is_said_to_do_so(shared):
    """Not a number that no JSON has a word for."""
    broken = small_model()
    broken.bn1.running_mean.fill_(float("nan"))
    answer = shared.client.post(published(shared, broken), content=digit(0)[1], headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_predictable"), answer.text
    assert "outputs are not finite" in answer.json()["detail"]


def test_a_damaged_model_is_not_predicted_with(shared, model):
    """Its digest is verified on the way."""
    address = published(shared, model, seed=2)
    path = shared.directory(address.split("/")[3], 10) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    answer = shared.client.post(address, content=digit(0)[1], headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (500, "checkpoint_damaged"), answer.text
