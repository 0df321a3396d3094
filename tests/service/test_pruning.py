"""Tests of service/pruning.py: the policy, the store and the storage together."""

import asyncio
from datetime import UTC, datetime

import pytest

from service.bundles import TAR_GZ, delete_bundle, store_bundle
from service.errors import ConflictError
from service.jobs import submit
from service.policy import PolicyFile
from service.pruning import Pruner
from service.retention import steps_to_drop
from service.states import State
from service.store.bundles import CodeGoneError
from service.store.ids import new_job_id
from service.store.records import Bundle
from service.streams import StreamFilter, follow
from service.tails import Tails
from tests.service.store.ranks import manifest, said, spec
from tests.support.archives import GOOD, tar_gz
from worker.contract import EventType, Health, Manifest, checkpoint_name, checkpoints_directory
from worker.contract.best import BestSpec
from worker.storage.local import LocalStorage

EVERYTHING = "[retention]\nlogs_days = 0\nevents_days = 0\nmetrics_days = 0\njobs_days = 0\ncode_days = 0\n"


@pytest.fixture
def prune(tmp_path):
    """Have a store pruned once by a policy."""

    async def once(store, policy: str) -> None:
        path = tmp_path / "policy.toml"
        path.write_text(policy)
        await Pruner(store, LocalStorage(tmp_path), PolicyFile(path)).once()

    return once


async def _ended(store, root, **changes) -> str:
    """A job that is over and has a checkpoint."""
    job_id, _ = await store.jobs.create(new_job_id(), spec(**changes))
    await store.attempts.begin(job_id, "first", 2)
    directory = root / checkpoints_directory(job_id) / checkpoint_name(10)
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"x")
    lines = [said(seq, EventType.LOG, message=f"line {seq}") for seq in range(2, 1500)]
    await store.events.ingest(job_id, 1, 0, [said(1, EventType.CHECKPOINT, **manifest(job_id, 10)), *lines], 1)
    await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="over")
    return job_id


def test_old_jobs_go_with_their_files_and_without_a_policy_all_stays(with_store, prune, tmp_path):
    """But for one with a pin, one that another job starts from, and those that have not ended."""

    async def scenario(store):
        plain, pinned, needed = [await _ended(store, tmp_path) for _ in range(3)]
        LocalStorage(tmp_path).pin(pinned, 10)
        heir, _ = await store.jobs.create(new_job_id(), spec(initialize_from=f"{needed}/checkpoints/10"))
        await prune(store, "")
        await prune(store, "[retention]\njobs_days = 1")
        assert await store.jobs.get(plain) is not None

        await prune(store, "[retention]\njobs_days = 0")
        left = {job_id: await store.jobs.get(job_id) is not None for job_id in (plain, pinned, needed, heir)}
        assert left == {plain: False, pinned: True, needed: True, heir: True}
        assert {path.name for path in (tmp_path / "jobs").iterdir()} == {pinned, needed}
        assert [one.step for one in await store.checkpoints.of(needed)] == [10]

    with_store(scenario)


@pytest.mark.parametrize(
    ("checkpoints", "best", "pinned", "dropped"),
    [
        ({}, None, (), []),
        ({10: "healthy"}, None, (), []),
        ({10: "healthy", 20: "healthy", 30: "healthy"}, None, (), [10, 20]),
        ({10: "healthy", 20: "healthy", 30: "unhealthy"}, None, (), [10]),
        ({10: "unhealthy", 20: "unhealthy"}, None, (), [10]),
        ({10: "healthy", 20: "healthy", 30: "healthy"}, "min", (), [20]),
        ({10: "healthy", 20: "healthy", 30: "healthy"}, "max", (20,), [10]),
    ],
)
def test_of_old_checkpoints_the_newest_the_last_good_the_best_and_pinned_ones_stay(checkpoints, best, pinned, dropped):
    """The metric is the step: its least is the oldest, its greatest the newest."""
    made = [
        Manifest.model_validate(manifest("job_01ARZ3NDEKTSV4RRFFQ69G5FAV", step)).model_copy(
            update={"metrics": {"val/m": float(step)}, "health": Health(status=status)}
        )
        for step, status in checkpoints.items()
    ]
    wanted = None if best is None else BestSpec(metric="val/m", mode=best)
    assert steps_to_drop(made, wanted, pinned) == dropped


def test_old_checkpoints_go_from_storage_and_catalogue(with_store, prune, tmp_path):
    """Not those of a job that goes on, nor where another job starts from one; whoever has a file open reads on."""

    async def scenario(store):
        storage, homes = LocalStorage(tmp_path), {}
        for name in ("plain", "needed", "live"):
            job_id, _ = await store.jobs.create(new_job_id(), spec())
            await store.attempts.begin(job_id, "first", 2)
            for step in (10, 20, 30):
                directory = tmp_path / checkpoints_directory(job_id) / checkpoint_name(step)
                directory.mkdir(parents=True)
                (directory / "manifest.json").write_text("{}")
                await store.events.ingest(job_id, 1, 0, [said(step, EventType.CHECKPOINT, **manifest(job_id, step))], 1)
            if name != "live":
                await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="over")
            homes[name] = job_id
        heir, _ = await store.jobs.create(new_job_id(), spec(initialize_from=f"{homes['needed']}/checkpoints/10"))
        storage.pin(homes["plain"], 20)
        with (tmp_path / checkpoints_directory(homes["plain"]) / checkpoint_name(10) / "manifest.json").open() as reader:
            await prune(store, "[retention]\ncheckpoints_days = 1")
            assert len(await store.checkpoints.of(homes["plain"])) == 3
            await prune(store, "[retention]\ncheckpoints_days = 0")
            assert reader.read() == "{}"
        left = {name: ([one.step for one in await store.checkpoints.of(job_id)], storage.steps(job_id)) for name, job_id in homes.items()}
        every = ([30, 20, 10], {10, 20, 30})
        assert left == {"plain": ([30, 20], {20, 30}), "needed": every, "live": every}
        await store.jobs.transition(heir, State.CANCELLED, from_={State.QUEUED}, reason="over")
        storage.unpin(homes["plain"], 20)
        await prune(store, "[retention]\ncheckpoints_days = 0")
        assert [storage.steps(homes[name]) for name in ("plain", "needed")] == [{30}, {30}]

    with_store(scenario)


def test_a_reader_in_the_midst_reads_on_to_the_end(with_store, prune, tmp_path):
    """What it has not read yet is said to be gone; then the stream ends as it would have."""

    async def scenario(store):
        job_id, heard = await _ended(store, tmp_path), []
        async for told in follow(Tails(store), await store.jobs.get(job_id), 0, StreamFilter((EventType.LOG, EventType.END)), 30):
            if told is not None:
                heard.append(told.event)
            if len(heard) == 1:
                await prune(store, "[retention]\nevents_days = 0")
        *lines, gap, end = heard
        assert (gap.type, end.type) == (EventType.GAP, EventType.END)
        assert gap.data["first_seq"] <= lines[-1].seq + 1 < gap.data["last_seq"] == end.seq - 1

    with_store(scenario)


def test_of_several_controllers_one_prunes(with_store, prune, tmp_path):
    """The lease says which; afterwards another may."""

    async def scenario(store):
        job_id = await _ended(store, tmp_path)
        await store.leases.take(["retention"], "another", 60)
        await prune(store, EVERYTHING)
        assert await store.jobs.get(job_id) is not None
        await store.leases.give_back("another", ["retention"])
        await prune(store, EVERYTHING)
        assert await store.jobs.get(job_id) is None

    with_store(scenario)


def test_code_goes_when_no_job_names_it_and_nobody_sent_it_lately(with_store, prune, tmp_path):
    """The archive goes with the last project that has it; a job that comes late is told."""

    async def scenario(store):
        storage = LocalStorage(tmp_path)
        used, _ = await store_bundle(store, storage, tar_gz(GOOD), TAR_GZ, "a")
        twin, is_new = await store_bundle(store, storage, tar_gz(GOOD), TAR_GZ, "b")
        assert is_new
        job_id, _ = await store.jobs.create(new_job_id(), spec(code=used.id))
        await prune(store, "[retention]\ncode_days = 1")
        assert await store.bundles.get(twin.id) is not None
        with pytest.raises(ConflictError, match="named by 1 jobs"):
            await delete_bundle(store, storage, used)
        await prune(store, "[retention]\ncode_days = 0")
        assert (await store.bundles.get(used.id), await store.bundles.get(twin.id)) == (used, None)
        assert storage.read_code(used.sha256)
        with pytest.raises(CodeGoneError):
            await store.jobs.create(new_job_id(), spec(code=twin.id))

        await store.jobs.delete(job_id)
        await delete_bundle(store, storage, used)
        assert not list((tmp_path / "code").iterdir())

    with_store(scenario)


def test_code_that_is_sent_again_while_it_is_removed_is_there(with_store, tmp_path):
    """However removal and upload meet, whoever was told an id can have it run."""

    async def scenario(store):
        storage = LocalStorage(tmp_path)
        for _ in range(20):
            bundle, _ = await store_bundle(store, storage, tar_gz(GOOD), TAR_GZ, "a")
            removed, (again, _) = await asyncio.gather(
                store.bundles.remove(bundle, lambda bundle=bundle: asyncio.to_thread(storage.remove_code, bundle.sha256)),
                store_bundle(store, storage, tar_gz(GOOD), TAR_GZ, "b"),
            )
            assert removed
            assert storage.read_code(again.sha256)
            await delete_bundle(store, storage, again)

    with_store(scenario)


def test_code_that_was_sent_again_since_it_was_found_old_stays(with_store):
    """An upload of the same files is a use."""

    async def scenario(store):
        now = datetime.now(UTC)
        bundle, _ = await store.bundles.add(Bundle("code_1", "a", "0" * 64, 1, 1, now, now))
        [found] = await store.bundles.old(0)
        again, is_new = await store.bundles.add(Bundle("code_2", "a", "0" * 64, 1, 1, now, datetime.now(UTC)))
        assert (again.id, is_new) == (bundle.id, False)

        async def never() -> None:
            raise AssertionError

        assert not await store.bundles.remove(found, never)

    with_store(scenario)


def test_a_submission_whose_code_is_gone_by_now_is_refused(with_store):
    """By name, as one that was never there."""

    async def scenario(store):
        with pytest.raises(Exception, match="code") as caught:
            await submit(store, None, spec(code="code_01ARZ3NDEKTSV4RRFFQ69G5FAV"))
        assert caught.value.code == "invalid_spec"

    with_store(scenario)
