"""Tests of service/statistics.py and worker/storage/tensors.py."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.service.api.world import LAYERS, model
from worker.storage.local import open_plain
from worker.storage.tensors import TensorFile, TensorFileError


def _opened(tmp_path, data: bytes) -> TensorFile:
    path = tmp_path / "file"
    path.write_bytes(data)
    return TensorFile.read(open_plain(path))


def test_every_layer_has_a_summary(world):
    """Name, kind, momentum, minimum, maximum and mean, without a line of torch."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    answer = world.client.get(f"/v1/jobs/{job_id}/checkpoints/10/statistics").json()

    assert [layer["name"] for layer in answer["layers"]] == ["stem.norm", "head.norm"]
    assert answer["layers"][0] == {
        "name": "stem.norm", "kind": "SyncBatchNorm", "num_channels": 4, "num_batches_tracked": 10, "eps": 1e-5, "momentum": 0.1,
        "running_mean": {"min": -1, "max": 10, "mean": 2.5}, "running_var": {"min": 1, "max": 5, "mean": 2}, "health": [],
    }  # fmt: skip
    assert answer["layers"][1]["running_mean"] == {"min": -0.5, "max": 0.5, "mean": 0}
    assert answer["layers"][1]["momentum"] is None


def test_one_layer_has_its_vectors(world):
    """All channels, in order."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    get = lambda name: world.client.get(f"/v1/jobs/{job_id}/checkpoints/latest/statistics", params={"layer": name})  # noqa: E731
    [layer] = get("stem.norm").json()["layers"]

    assert layer["running_mean"]["values"] == [-1, 0, 1, 10]
    assert layer["running_var"]["values"] == [1, 1, 1, 5]
    for name in ("stem.conv", "", "stem.norm.running_mean", "\x00"):
        assert (get(name).status_code, get(name).json()["code"]) == (404, "layer_not_found")


def test_two_checkpoints_can_be_compared(world):
    """This minus that, per layer."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    world.checkpoint(job_id, 30, seq=2, layers=LAYERS[:1])
    get = lambda step, query: world.client.get(f"/v1/jobs/{job_id}/checkpoints/{step}/statistics?{query}").json()  # noqa: E731
    answer = get(30, "against=10&layer=stem.norm")

    assert answer["against"] == {"job_id": job_id, "step": 10}
    difference = answer["layers"][0]["difference"]
    assert difference["running_mean"] == {"min": 0, "max": 20, "mean": 5, "values": [0, 0, 0, 20]}
    assert difference["running_var"] == {"min": 0, "max": 0, "mean": 0, "values": [0, 0, 0, 0]}
    # One channel of four has moved by 20 and varies by 5: (20^2 (1/5 + 1/5) / 2) / 4.
    assert answer["layers"][0]["distance"] == pytest.approx(20.0, rel=1e-4)
    assert answer["layers"][0]["mean_shift"] == pytest.approx(20 / math.sqrt(5), rel=1e-4)
    assert [layer["distance"] is None for layer in get(10, "against=30")["layers"]] == [False, True]
    assert [layer["difference"] is None for layer in get(10, "against=30")["layers"]] == [False, True]
    assert get(10, "against=11")["code"] == "checkpoint_not_found"
    assert get(10, "against=first")["code"] == "invalid_request"


def test_checkpoints_of_two_jobs_can_be_compared(world):
    """By the words that `initialize_from` takes."""
    mine, other = world.start(), world.start()
    world.checkpoint(mine, 30, seq=1)
    world.checkpoint(other, 10, seq=1)
    get = lambda against: world.client.get(f"/v1/jobs/{mine}/checkpoints/30/statistics?against={against}").json()  # noqa: E731

    for step in ("10", "latest", "best"):
        answer = get(f"{other}/checkpoints/{step}")
        assert answer["against"] == {"job_id": other, "step": 10}
        assert answer["layers"][0]["difference"]["running_mean"]["max"] == 20
    assert get(f"{other}/checkpoints/30")["code"] == "checkpoint_not_found"
    assert get("job_" + "0" * 26 + "/checkpoints/10")["code"] == "job_not_found"
    assert get(f"{other}/10")["code"] == "invalid_request"


def test_health_marks_stand_with_their_layer(world):
    """As they were found when the checkpoint was written."""
    job_id = world.start()
    finding = {"layer": "head.norm", "code": "dead_channels", "message": "2 of 2 channels never vary"}
    world.checkpoint(job_id, 10, seq=1, health={"status": "unhealthy", "findings": [finding]})
    answer = world.client.get(f"/v1/jobs/{job_id}/checkpoints/10/statistics").json()

    assert answer["health"]["status"] == "unhealthy"
    assert [layer["health"] for layer in answer["layers"]] == [[], [{"code": "dead_channels", "message": "2 of 2 channels never vary"}]]


def test_values_that_are_no_numbers_are_null(world):
    """JSON has no NaN, and a page must show the checkpoint all the same."""
    job_id = world.start()
    path = world.directory(job_id, 10) / "model.safetensors"
    world.checkpoint(job_id, 10, seq=1)
    path.write_bytes(path.read_bytes().replace(struct.pack("<4f", -1, 0, 1, 10), struct.pack("<4f", math.nan, 0, math.inf, 10)))
    [layer] = world.client.get(f"/v1/jobs/{job_id}/checkpoints/10/statistics?layer=stem.norm").json()["layers"]

    assert layer["running_mean"] == {"min": None, "max": None, "mean": None, "values": [None, 0, None, 10]}


def test_a_damaged_model_file_is_said_to_be_damaged(world):
    """Of the right size, and no safetensors."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    path = world.directory(job_id, 10) / "model.safetensors"
    path.write_bytes(b"\xff" * len(path.read_bytes()))
    answer = world.client.get(f"/v1/jobs/{job_id}/checkpoints/10/statistics")

    assert (answer.status_code, answer.json()["code"]) == (500, "checkpoint_damaged")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32"])
def test_vectors_are_read_exactly(tmp_path, dtype):
    """Against the library that writes them."""
    values = np.array([0, 1, -2, 1000, 7], dtype)

    assert _opened(tmp_path, save({"a": np.ones(3), "x": values})).vector("x") == values.tolist()


def test_bfloat16_is_read_exactly(tmp_path):
    """It is the upper half of a float32."""
    values = np.array([1.5, -3.0, 1e30, 0.0], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32).tolist()

    assert _opened(tmp_path, struct.pack("<Q", len(header)) + header + halves).vector("x") == expected


@pytest.mark.parametrize(
    "entry",
    [
        None, [], {}, {"dtype": "F32", "shape": [4]}, {"dtype": "F32", "shape": [4], "data_offsets": [0, 15]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}, {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}, {"dtype": "F4", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}, {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [True] * 2, "data_offsets": [0, 4]}, {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}, {"dtype": "F32", "shape": [4], "data_offsets": 16},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 16]},
    ],
)  # fmt: skip
def test_offsets_that_do_not_hold_together_are_refused(tmp_path, entry):
    """A header is not believed."""
    header = json.dumps({"x": entry}).encode()
    with pytest.raises(TensorFileError):
        _opened(tmp_path, struct.pack("<Q", len(header)) + header + bytes(16)).vector("x")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_is_an_error_of_its_own_or_other_numbers(tmp_path_factory, data):
    """Bytes flipped, cut off or added: never an exception of another kind, never more memory than the file."""
    content = bytearray(model(3))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1) | st.integers(0, 300))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    file = open_plain(path)
    try:
        assert len(TensorFile.read(file).vector("stem.norm.running_mean")) <= len(content)
    except TensorFileError:
        pass
    finally:
        file.close()
