"""Tests of service/assignments.py and service/catalogue.py, on a real store and a cluster in memory."""

import hashlib

import pytest

from service.bundles import TAR_GZ, store_bundle
from service.catalogue import rebuild
from service.states import State
from service.store.bundles import CodeGoneError
from service.store.ids import new_id
from tests.support.archives import GOOD, tar_gz
from tests.support.world import JOB_IDS, World, manifest, run
from worker.contract import EventType, Manifest, checkpoints_directory


def test_ranks_are_told_attempt_fence_and_marker(tmp_path):
    """The marker that proves the shared storage exists before a rank looks for it."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(await world.submit())

            assert [assignment.rank for assignment in gang.assignments] == [0, 1]
            assert all(assignment.fence == 1 and assignment.attempt == 1 for assignment in gang.assignments)
            assert (world.storage / gang.assignments[0].marker).is_file()

    run(tmp_path, scenario)


def test_an_attempt_starts_from_its_own_latest_checkpoint_or_from_the_one_that_the_spec_names(tmp_path):
    """A restart resumes from the storage, heard of or not; initialize_from starts from those weights; a plain job from nothing."""

    async def scenario(world: World) -> None:
        async with world.controller():
            first = await world.submit(0)
            gang = await world.cluster.gang(first)
            assert gang.assignments[0].resume is None
            gang.say(EventType.STATE, {"phase": "training"})
            world.publish(first, 12, 0.9)
            world.publish(first, 24, 0.8)
            await world.until(first, State.RUNNING)
        gang.is_dissolved = True
        async with world.controller():
            again = await world.cluster.gang(first, attempt=2)
            assert again.assignments[0].resume == f"{first}/24"

            second = await world.submit(1, initialize_from=f"{first}/checkpoints/best")
            assert (await world.cluster.gang(second)).assignments[0].resume == f"{first}/12"

            third = await world.submit(2, initialize_from=f"{first}/checkpoints/7")
            job = await world.until(third, State.FAILED)
            assert job.reason == "gang_start_failed"
            assert "checkpoint 7 of" in job.message

    run(tmp_path, scenario)


def test_ranks_are_told_where_uploaded_code_lies(tmp_path):
    """By name and digest; a job whose code is gone is none."""

    async def scenario(world: World) -> None:
        async with world.controller():
            bundle, _ = await store_bundle(world.store, world.opened, tar_gz(GOOD), TAR_GZ, "default")
            [first, second] = (await world.cluster.gang(await world.submit(0, code=bundle.id))).assignments
            assert first.code_sha256 == second.code_sha256
            archive = world.opened.read_code(first.code_sha256)
            assert hashlib.sha256(archive).hexdigest() == first.code_sha256
            assert (await world.cluster.gang(await world.submit(1))).assignments[0].code_sha256 is None

            with pytest.raises(CodeGoneError, match=(gone := new_id("code"))):
                await world.submit(2, code=gone)

    run(tmp_path, scenario)


def test_the_catalogue_lists_what_is_in_the_storage_when_a_job_has_ended(tmp_path):
    """A rank killed between publishing and announcing, or between deleting and announcing, leaves no wrong list."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit(retries={"restarts": 0}))
            gang.say(EventType.STATE, {"phase": "training"})
            gang.say(EventType.CHECKPOINT, manifest(job_id, 12, 0.9), [0])
            await world.until(job_id, State.RUNNING)
            world.publish(job_id, 24, 0.8)
            gang.dead |= {0, 1}
            await world.until(job_id, State.FAILED)

        assert [checkpoint.step for checkpoint in await world.store.checkpoints.of(job_id)] == [24]

    run(tmp_path, scenario)


def test_what_dead_writers_left_is_gone_when_the_attempt_is(tmp_path):
    """Half-written and half-deleted checkpoints of a killed rank do not fill the disk."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(retries={"restarts": 0})
            world.publish(job_id, 12, 0.9)
            directory = world.storage / checkpoints_directory(job_id)
            for name in (".tmp-step-00000024-1", ".deleted-step-00000006-ab"):
                (directory / name).mkdir()
            gang.dead |= {0, 1}
            await world.until(job_id, State.FAILED)

        assert [path.name for path in directory.iterdir()] == ["step-00000012"]

    run(tmp_path, scenario)


def test_the_catalogue_is_rebuilt_from_the_storage(tmp_path):
    """After an older database was put back: what is there is listed, what is not is not, remains are swept, live jobs are let be."""

    async def scenario(world: World) -> None:
        ended, live, unknown = await world.submit(0), await world.submit(1), JOB_IDS[5]
        assert await world.store.jobs.transition(ended, State.CANCELLED, from_={State.QUEUED}, reason="test")
        await world.store.checkpoints.replace(ended, [Manifest.model_validate(manifest(ended, 6, 0.5))])
        for job_id in (ended, live, unknown):
            world.publish(job_id, 12, 0.9)
            (world.storage / checkpoints_directory(job_id) / ".tmp-step-00000024-1").mkdir()

        await rebuild(world.store, world.opened)

        steps = [[one.step for one in await world.store.checkpoints.of(job_id)] for job_id in (ended, live, unknown)]
        assert steps == [[12], [], []]
        left = [len(list((world.storage / checkpoints_directory(job_id)).iterdir())) for job_id in (ended, live, unknown)]
        assert left == [1, 2, 2]

    run(tmp_path, scenario)
