"""What every storage promises: a local directory and a bucket alike."""

import pytest

from tests.support.checkpoints import JOB, draft, snapshot
from worker.checkpoint import load, publish
from worker.errors import CheckpointCorruptError, CheckpointWriteError, StaleFenceError
from worker.storage.opening import open_storage

OTHER = JOB[:-1] + "B"


def _content(storage, manifest, name):
    file = storage.open(manifest, name)
    try:
        return file.read(0, file.size)
    finally:
        file.close()


def test_what_is_published_is_found_and_read_by_another_process_of_the_same_address(storage):
    """The address is all that the others need."""
    manifest = publish(storage, snapshot(120))
    other = open_storage(storage.address)

    assert other.published(JOB) == {120: manifest}
    assert (other.steps(JOB), other.jobs()) == ({120}, [JOB])
    assert load(other, JOB, 120).model["weight"].tolist() == [[120.0] * 2] * 3
    file = other.open(manifest, "training.json")
    assert file.read(2, 6) == _content(storage, manifest, "training.json")[2:8]
    file.close()


def test_nothing_is_there_before_anything_is(storage):
    """An empty storage is no error."""
    assert (storage.published(JOB), storage.steps(JOB), storage.jobs(), storage.pins(JOB)) == ({}, set(), [], set())
    storage.sweep(JOB)
    storage.delete(JOB)
    storage.unpin(JOB, 1)
    storage.unmark("nothing")
    assert not storage.remove(JOB, 1, unless_pinned=False)
    with pytest.raises(CheckpointCorruptError, match=r"checkpoint 1 of job_.* is not in the storage"):
        load(storage, JOB, 1)


def test_a_name_that_was_published_is_never_overwritten(storage):
    """The first whole checkpoint of a step stays, down to its bytes."""
    first = publish(storage, snapshot(1, fence=1))
    before = _content(storage, first, "model.safetensors")

    assert publish(storage, snapshot(1, fence=2)) == first
    assert _content(storage, first, "model.safetensors") == before


def test_a_writer_of_an_earlier_attempt_is_refused(storage):
    """It learns so at its next checkpoint, and changes nothing."""
    later = publish(storage, snapshot(5, fence=2))

    with pytest.raises(StaleFenceError, match="fence 1 is older than fence 2"):
        publish(storage, snapshot(6, fence=1))
    assert storage.published(JOB) == {5: later}


def test_a_writer_that_fails_halfway_leaves_nothing_to_be_seen(storage, monkeypatch):
    """The files are written, the manifest is not: the checkpoint before stays, and the next writer is not in the way of the remains."""
    first = publish(storage, snapshot(1))

    def broken(*_args, **_kwargs):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(first), "model_dump_json", broken)
        with pytest.raises(CheckpointWriteError, match=r"checkpoint of step 2 was not written .*Input/output error"):
            publish(storage, snapshot(2))
    assert storage.published(JOB) == {1: first}
    assert publish(storage, snapshot(2, fence=2)).step == 2


def test_deleting_takes_one_checkpoint_and_then_all(storage):
    """Only what was meant goes."""
    for step in (1, 2):
        publish(storage, snapshot(step))

    assert storage.remove(JOB, 1, unless_pinned=True)
    assert not storage.remove(JOB, 1, unless_pinned=True)
    assert storage.steps(JOB) == {2}
    storage.delete(JOB)
    assert (storage.steps(JOB), storage.published(JOB)) == (set(), {})


def test_a_pinned_checkpoint_stays_until_the_pin_goes(storage):
    """A pin that comes when the checkpoint is already being deleted brings it back whole."""
    manifest = publish(storage, snapshot(1))
    storage.pin(JOB, 1)

    assert storage.pins(JOB) == {1}
    assert not storage.remove(JOB, 1, unless_pinned=True)
    assert storage.published(JOB) == {1: manifest}
    assert load(storage, JOB, 1).scalars == {"step": 1}
    storage.unpin(JOB, 1)
    assert storage.pins(JOB) == set()
    assert storage.remove(JOB, 1, unless_pinned=True)


def test_markers_come_and_go(storage):
    """By them a rank sees that the storage is the controller's."""
    storage.mark(".gangs/one")

    assert open_storage(storage.address).is_marked(".gangs/one")
    assert not storage.is_marked(".gangs/two")
    storage.unmark(".gangs/one")
    assert not storage.is_marked(".gangs/one")


def test_jobs_do_not_see_each_other(storage):
    """Each has its own."""
    publish(storage, snapshot(1))

    assert storage.published(OTHER) == {}
    assert draft(1).job_id == JOB
