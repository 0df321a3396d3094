"""Tests of service/api/checkpoints.py and service/artifacts.py: pinned, deleted, and served out of a bucket."""

import hashlib
import io
import tarfile

import torch

from tests.service.api.world import running
from tests.service.store.ranks import manifest as manifest_of
from tests.service.store.ranks import said
from tests.support.checkpoints import snapshot
from worker.checkpoint import publish
from worker.contract import EventType
from worker.storage.local import LocalStorage


def test_a_pin_keeps_a_checkpoint(world, stored):
    """Shown in the list, honoured by DELETE, and known to the ranks, who see the same storage."""
    job_id = stored[0]
    url = f"/v1/jobs/{job_id}/checkpoints/10"
    pinned = world.client.put(f"{url}/pin")

    assert (pinned.status_code, pinned.json()["step"], pinned.json()["pinned"]) == (200, 10, True)
    assert world.client.put(f"{url}/pin").json() == pinned.json()
    assert world.client.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"] == [pinned.json()]
    assert LocalStorage(world.settings.storage_path).pins(job_id) == {10}
    world.finish(job_id)
    refused = world.client.delete(url)
    assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_pinned")
    assert world.client.delete(f"{url}/pin").json()["pinned"] is False
    assert world.client.delete(url).status_code == 204


def test_a_checkpoint_that_is_gone_cannot_be_pinned(world, stored):
    """Pruned a moment ago, and not announced yet: 404, and no pin is left behind."""
    LocalStorage(world.settings.storage_path).remove(stored[0], 10, unless_pinned=True)
    answer = world.client.put(f"/v1/jobs/{stored[0]}/checkpoints/10/pin")

    assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")
    assert LocalStorage(world.settings.storage_path).pins(stored[0]) == set()


def test_a_checkpoint_can_be_deleted(world):
    """Its files and its place in the list; those who follow the job are told. Not the one that a live job would resume from."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    world.checkpoint(job_id, 20, seq=2)
    url = f"/v1/jobs/{job_id}/checkpoints"

    assert world.client.delete(f"{url}/10").status_code == 204
    assert not world.directory(job_id, 10).exists()
    assert [row["step"] for row in world.client.get(url).json()["data"]] == [20]
    assert world.client.delete(f"{url}/10").json()["code"] == "checkpoint_not_found"
    event = world.client.get(f"/v1/jobs/{job_id}/events?limit=1000").json()["data"][-1]
    assert (event["type"], event["data"], event["rank"]) == ("pruned", {"steps": [10]}, None)

    refused = world.client.delete(f"{url}/latest")
    assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_in_use")
    world.finish(job_id)
    assert world.client.delete(f"{url}/latest").status_code == 204
    assert world.client.get(f"/v1/jobs/{job_id}/events?limit=1000").json()["data"][-1]["type"] == "end"


def test_checkpoints_in_a_bucket_are_served_like_those_in_a_directory(tmp_path, object_store):
    """Files, ranges, archive, statistics, pin and deletion, over an object store."""
    address = object_store.address()
    with running(tmp_path, storage=address) as world:
        storage = object_store.open(address)
        job_id = world.start()
        entry = {"weight": torch.zeros(400_000), "norm.running_mean": torch.tensor([1.0, 2.0]), "norm.running_var": torch.ones(2)}
        manifest = publish(storage, snapshot(10, model=entry, layers=("norm",), job_id=job_id))
        world.say(job_id, 0, said(1, EventType.CHECKPOINT, **manifest.model_dump(mode="json")))
        url = f"/v1/jobs/{job_id}/checkpoints/10"
        answer = world.client.get(f"{url}/files/model.safetensors")
        assert (answer.status_code, hashlib.sha256(answer.content).hexdigest()) == (200, manifest.files["model.safetensors"].sha256)
        part = world.client.get(f"{url}/files/model.safetensors", headers={"Range": "bytes=8-1000007"})
        assert part.content == answer.content[8:1_000_008]
        archive = world.client.get(f"{url}/archive")
        with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
            assert tar.extractfile("step-00000010/model.safetensors").read() == answer.content
        assert world.client.get(f"{url}/statistics?layer=norm").json()["layers"][0]["running_mean"]["values"] == [1, 2]
        assert world.client.get(f"{url}/files/manifest.json").json()["step"] == 10
        assert world.client.put(f"{url}/pin").json()["pinned"] is True
        assert world.client.delete(f"{url}/pin").json()["pinned"] is False
        world.finish(job_id)
        assert world.client.delete(url).status_code == 204
        assert storage.steps(job_id) == set()
        world.call(world.store.checkpoints.replace, job_id, [manifest])
        assert world.client.get(f"{url}/files/model.safetensors").json()["code"] == "checkpoint_not_found"


def test_a_bucket_that_does_not_answer_is_503(tmp_path, monkeypatch):
    """Not a fault of ours, and not a damaged checkpoint."""
    (tmp_path / "profiles.toml").write_text('[none]\nendpoint = "http://127.0.0.1:9"\nregion = "us-east-1"\nanonymous = true\n')
    monkeypatch.setenv("SYNCBN_STORAGE_PROFILES", str(tmp_path / "profiles.toml"))
    with running(tmp_path, storage="s3://bucket/prefix?profile=none") as world:
        job_id = world.start()
        world.say(job_id, 0, said(1, EventType.CHECKPOINT, **manifest_of(job_id, 10)))
        answer = world.client.get(f"/v1/jobs/{job_id}/checkpoints/10/files/manifest.json")

        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unreachable")
