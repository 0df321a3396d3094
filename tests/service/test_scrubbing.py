"""Tests of service/scrubbing.py: files are verified before anybody asks for them, and damage is seen."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from service import reading, scrubbing
from service.artifacts import Artifacts, OpenedFile
from service.reading import Verified
from service.scrubbing import Scrubber
from service.states import State
from service.store.ids import new_job_id
from service.store.store import Store
from tests.service.api.served import served
from tests.service.api.world import World, model
from tests.service.store.ranks import manifest, said, spec
from tests.support.serving import until
from worker.contract import EventType, checkpoint_name, checkpoints_directory
from worker.storage.local import LocalStorage
from worker.storage.tensors import Bytes

FILES = ["model.safetensors", "training.json", "training.safetensors"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An application that looks after what is damaged often, and trusts files at once."""
    monkeypatch.setattr(scrubbing, "LOOK_S", 0.05)
    for module in (reading, scrubbing):
        monkeypatch.setattr(module, "SETTLED_S", -60.0)
    with served(tmp_path / "home") as world:
        yield world


def _scrubber(world: World) -> Scrubber:
    return world.client.app.state.context.scrubber


def _verified(world: World, number: int) -> None:
    until(lambda: _scrubber(world).num_verified >= number, 20, f"{number} files to be verified")


def _counts(world: World) -> tuple[float, float]:
    families = text_string_to_metric_families(world.client.get("/metrics").text)
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    return samples["syncbn_checkpoint_files_verified_total"], samples["syncbn_checkpoint_files_damaged"]


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_first_download_takes_no_digest(world, digests):
    """What was announced is verified by the time that somebody wants it; without that the download would do it."""
    job_id = world.start()
    data = world.checkpoint(job_id, 10, seq=1)
    _verified(world, len(FILES))
    assert sorted(digests) == sorted(entry["size"] for entry in data["files"].values())
    digests.clear()
    for name in FILES:
        assert world.client.get(f"/v1/jobs/{job_id}/checkpoints/10/files/{name}").status_code == 200
    assert digests == []
    assert _counts(world) == (len(FILES), 0)


def test_a_file_that_was_written_to_since_is_verified_by_its_download(world, digests):
    """As if nobody had verified it before: the answer breaks off."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    _verified(world, len(FILES))
    digests.clear()
    _damage(world.directory(job_id, 10) / "model.safetensors")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        world.client.get(f"/v1/jobs/{job_id}/checkpoints/10/files/model.safetensors")
    assert len(digests) == 1


def test_a_damaged_file_is_found_without_a_download(world):
    """It shows in the log, in the metrics and in the list of checkpoints, until it is deleted."""
    job_id = world.start()
    wrong = {"size": len(model(10)), "sha256": "0" * 64}
    with capture_logs() as logs:
        world.checkpoint(job_id, 10, seq=1, files={"model.safetensors": wrong, "gone.json": {"size": 2, "sha256": "0" * 64}})
        until(lambda: _counts(world)[1] == 2, 20, "both damaged files to be counted")
    said = {(line["file"], line["job"], line["step"]) for line in logs if line["event"] == "checkpoint_damaged"}
    assert said == {("model.safetensors", job_id, 10), ("gone.json", job_id, 10)}
    [listed] = world.client.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"]
    assert listed["damaged"] == ["gone.json", "model.safetensors"]

    world.checkpoint(job_id, 20, seq=2)
    assert world.client.delete(f"/v1/jobs/{job_id}/checkpoints/10").status_code == 204
    until(lambda: _counts(world)[1] == 0, 20, "the deleted files not to be counted any more")
    [listed] = world.client.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"]
    assert (listed["step"], listed["damaged"]) == (20, [])


def test_a_file_that_was_put_back_is_not_damaged_any_more(world):
    """From a backup: it is verified again, because it is another one."""
    job_id = world.start()
    right = model(10)
    entry = {"size": len(right), "sha256": hashlib.sha256(right).hexdigest()}
    (path := world.directory(job_id, 10)).mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(len(right)))
    (path / "manifest.json").write_bytes(b"{}")
    world.say(job_id, 0, said(1, EventType.CHECKPOINT, **manifest(job_id, 10, files={"model.safetensors": entry})))
    until(lambda: _counts(world) == (0, 1), 20, "the damaged file to be found")
    (path / "model.safetensors").write_bytes(right)
    until(lambda: _counts(world) == (1, 0), 20, "the file to be found right")


def test_what_was_there_before_the_start_is_verified(tmp_path, monkeypatch):
    """A controller that starts knows of no file that it is right: it reads all, the newest jobs first."""
    monkeypatch.setattr(reading, "SETTLED_S", -60.0)
    with served(tmp_path / "home") as world:
        jobs = [world.start() for _ in range(3)]
        for job_id in jobs:
            world.checkpoint(job_id, 10, seq=1)
    seen = []
    opening = Artifacts.open

    async def watched(self, checkpoint, name):
        seen.append(checkpoint.job_id)
        return await opening(self, checkpoint, name)

    monkeypatch.setattr(Artifacts, "open", watched)
    with served(tmp_path / "home") as world:
        _verified(world, 3 * len(FILES))
    assert list(dict.fromkeys(seen)) == jobs[::-1]


def test_best_and_latest_come_first(tmp_path):
    """They are what is downloaded."""

    async def scene():
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            storage = LocalStorage(tmp_path / "storage")
            job_id = await _job_with_checkpoints(store, storage.root, {10: 0.7, 20: 0.9, 30: 0.8, 40: 0.6})
            scrubber = Scrubber(store, Artifacts(store, storage), Verified())
            return [checkpoint.step async for checkpoint in scrubber._checkpoints(job_id)]

    assert asyncio.run(scene()) == [40, 20, 30, 10]


def test_a_checkpoint_that_is_pruned_meanwhile_is_no_damage(tmp_path, monkeypatch):
    """Deleted between being listed and being opened, or while it is read."""
    monkeypatch.setattr(scrubbing, "SETTLED_S", -60.0)

    async def scene():
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            storage = LocalStorage(tmp_path / "storage")
            job_id = await _job_with_checkpoints(store, storage.root, {10: 0.7, 20: 0.9, 30: 0.8})

            def prune(_took_s):
                for step in (10, 30):
                    storage.remove(job_id, step, unless_pinned=False)
                return 0.0

            scrubber = Scrubber(store, Artifacts(store, storage), Verified(), rest=prune)
            with capture_logs() as logs:
                await scrubber.once()
            return scrubber.num_verified, scrubber.num_damaged, logs

    assert asyncio.run(scene()) == (1, 0, [])


def test_it_rests_for_most_of_the_time(tmp_path, monkeypatch):
    """After every chunk nine times as long as that took."""
    monkeypatch.setattr(scrubbing, "SETTLED_S", -60.0)

    async def scene():
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            storage, rests = LocalStorage(tmp_path / "storage"), []
            await _job_with_checkpoints(store, storage.root, {10: 0.7}, size=3 * reading.CHUNK_BYTES)
            scrubber = Scrubber(store, Artifacts(store, storage), Verified())
            usual = scrubber._rest

            def watched(took_s):
                rests.append((took_s, usual(took_s)))
                return 0.0

            scrubber._rest = watched
            await scrubber.once()
            return rests

    rests = asyncio.run(scene())
    assert len(rests) == 1 + 3
    assert all(rest_s == pytest.approx(9 * took_s) for took_s, rest_s in rests)


def test_an_object_store_is_left_alone(tmp_path):
    """What cannot be remembered is not read."""

    async def scene():
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            storage = LocalStorage(tmp_path / "storage")
            await _job_with_checkpoints(store, storage.root, {10: 0.7})
            verified, artifacts = Verified(), Artifacts(store, storage)
            opening = artifacts.open

            async def without_identity(checkpoint, name):
                opened = await opening(checkpoint, name)
                opened.file.close()
                return OpenedFile(name, opened.size, opened.sha256, Bytes(b""))

            artifacts.open = without_identity
            scrubber = Scrubber(store, artifacts, verified)
            async with asyncio.timeout(20):
                await scrubber.run()
            return scrubber.num_verified, scrubber.num_damaged

    assert asyncio.run(scene()) == (0, 0)


def test_it_ends_at_once_in_the_middle_of_a_file(tmp_path, monkeypatch):
    """A controller that stops does not wait for it."""
    monkeypatch.setattr(scrubbing, "SETTLED_S", -60.0)

    async def scene():
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            storage, is_resting = LocalStorage(tmp_path / "storage"), asyncio.Event()
            await _job_with_checkpoints(store, storage.root, {10: 0.7}, size=3 * reading.CHUNK_BYTES)
            scrubber = Scrubber(store, Artifacts(store, storage), Verified())
            rests = iter([0.0, 3600.0])

            def rest(_took_s):
                rest_s = next(rests)
                if rest_s:
                    is_resting.set()
                return rest_s

            scrubber._rest = rest
            running = asyncio.create_task(scrubber.run())
            async with asyncio.timeout(20):
                await is_resting.wait()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            return scrubber.num_verified, scrubber.num_damaged

    assert asyncio.run(scene()) == (0, 0)


async def _job_with_checkpoints(store: Store, root: Path, accuracies: dict[int, float], size: int = 100) -> str:
    """Store a running job with a checkpoint of one file for each step and accuracy."""
    job_id, _ = await store.jobs.create(new_job_id(), spec())
    await store.attempts.begin(job_id, "first", 1)
    await store.jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="training")
    entry = {"size": size, "sha256": hashlib.sha256(bytes(size)).hexdigest()}
    for seq, (step, accuracy) in enumerate(accuracies.items(), 1):
        directory = root / checkpoints_directory(job_id) / checkpoint_name(step)
        directory.mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(bytes(size))
        data = manifest(job_id, step, accuracy=accuracy, files={"model.safetensors": entry})
        (directory / "manifest.json").write_text(json.dumps(data))
        assert await store.events.ingest(job_id, 1, 0, [said(seq, EventType.CHECKPOINT, **data)], 1)
    return job_id
