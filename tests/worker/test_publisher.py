"""Tests of worker/publisher.py."""

import os
import threading
import time
from functools import partial

import pytest

from tests.support.checkpoints import JOB, snapshot
from worker import publisher as module
from worker.checkpoint import publish
from worker.contract import checkpoint_name, checkpoints_directory
from worker.contract.spec import CheckpointSpec
from worker.errors import CheckpointWriteError, StaleFenceError
from worker.progress import EventBuffer
from worker.publisher import Publisher
from worker.storage.local import LocalStorage

KEEP_ONE = CheckpointSpec(keep_last=1, keep_best=None)


def _said(events):
    return [(event.type.value, event.data) for event in events.drain(0, 0)[0]]


def test_announced_only_when_published_and_pruned_after(tmp_path):
    """Each event comes after the fact: the checkpoint is on disk, the old one gone."""
    events = EventBuffer()
    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, events)

    for step in (1, 2):
        publisher.submit(step, partial(snapshot, step))
    publisher.finish()

    assert [kind for kind, _ in _said(events)] == ["checkpoint", "checkpoint", "pruned"]
    assert _said(events)[-1] == ("pruned", {"steps": [1]})
    assert list(LocalStorage(tmp_path).published(JOB)) == [2]


def test_a_failed_write_is_a_warning_and_the_job_goes_on(tmp_path, monkeypatch):
    """The disk fails for one checkpoint: the one before stays, the one after is written."""
    events = EventBuffer()
    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, events)
    publisher.submit(1, partial(snapshot, 1))
    publisher.wait()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _no_space)
        publisher.submit(2, partial(snapshot, 2))
        publisher.wait()
    assert list(LocalStorage(tmp_path).published(JOB)) == [1]

    publisher.submit(3, partial(snapshot, 3))
    publisher.finish()

    assert [kind for kind, _ in _said(events)] == ["checkpoint", "warning", "checkpoint", "pruned"]
    assert {"code": "checkpoint_not_written", "step": 2}.items() <= _said(events)[1][1].items()
    assert list(LocalStorage(tmp_path).published(JOB)) == [3]


def test_whatever_goes_wrong_in_the_thread_is_said(tmp_path):
    """Also what nobody foresaw: a warning with its place, and the next one is written."""
    events = EventBuffer()
    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, events)
    publisher.submit(1, lambda: {}["unforeseen"])
    publisher.submit(2, partial(snapshot, 2))
    publisher.finish()

    assert [kind for kind, _ in _said(events)] == ["warning", "checkpoint"]
    assert {"code": "checkpoint_not_written", "step": 1}.items() <= _said(events)[0][1].items()
    assert "test_publisher.py" in _said(events)[0][1]["message"]
    assert "unforeseen" in _said(events)[0][1]["message"]


def test_a_last_checkpoint_that_cannot_be_written_fails_the_job_after_a_while(tmp_path, monkeypatch):
    """It is tried again for a bounded time, each failure is said, and then the job says what to do."""
    monkeypatch.setattr(module, "LAST_PATIENCE_S", 0.5)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.1)
    events = EventBuffer()
    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, events)
    monkeypatch.setattr(os, "fsync", _no_space)
    publisher.submit(1, partial(snapshot, 1))

    with pytest.raises(CheckpointWriteError, match=r"No space left .*; free space, or mend the disk or the connection"):
        publisher.finish()
    assert {kind for kind, _ in _said(events)} == {"warning"}
    assert len(_said(events)) > 1


def test_a_last_checkpoint_is_written_as_soon_as_there_is_room(tmp_path, monkeypatch):
    """Somebody frees the disk while the job waits: it succeeds."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.05)
    events, failures = EventBuffer(), []

    def full_at_first(descriptor):
        if len(failures) < 2:
            failures.append(descriptor)
            _no_space(descriptor)

    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, events)
    monkeypatch.setattr(os, "fsync", full_at_first)
    publisher.submit(1, partial(snapshot, 1))
    publisher.finish()

    assert [kind for kind, _ in _said(events)] == ["warning", "warning", "checkpoint"]
    assert list(LocalStorage(tmp_path).published(JOB)) == [1]


def test_a_job_that_is_cancelled_does_not_wait_for_room(tmp_path, monkeypatch):
    """Cancelling ends the patience at once."""
    stop = threading.Event()
    stop.set()
    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, EventBuffer())
    monkeypatch.setattr(os, "fsync", _no_space)
    publisher.submit(1, partial(snapshot, 1))
    before = time.monotonic()

    with pytest.raises(CheckpointWriteError):
        publisher.finish(stop)
    assert time.monotonic() - before < module.FIRST_PAUSE_S


def test_a_pinned_checkpoint_is_never_pruned(tmp_path):
    """And costs no other its place."""
    storage, events = LocalStorage(tmp_path), EventBuffer()
    publisher = Publisher(storage, JOB, KEEP_ONE, events)
    publisher.submit(1, partial(snapshot, 1))
    publisher.wait()
    storage.pin(JOB, 1)
    for step in (2, 3):
        publisher.submit(step, partial(snapshot, step))
    publisher.finish()

    assert list(storage.published(JOB)) == [1, 3]
    assert _said(events)[-1] == ("pruned", {"steps": [2]})


def test_a_stale_fence_ends_the_attempt(tmp_path):
    """A rank left over from an earlier attempt learns it at its next checkpoint at the latest."""
    publish(LocalStorage(tmp_path), snapshot(1, fence=2))
    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, EventBuffer())
    publisher.submit(2, partial(snapshot, 2, fence=1))

    with pytest.raises(StaleFenceError):
        publisher.submit(3, partial(snapshot, 3, fence=1))


def test_one_write_at_a_time(tmp_path, monkeypatch):
    """Training goes on during a write, and waits only when the next checkpoint comes too early."""
    gate, order = threading.Event(), []

    def slow(storage, given):
        order.append(f"begin {given.manifest.step}")
        assert gate.wait(30)
        order.append(f"end {given.manifest.step}")
        return publish(storage, given)

    monkeypatch.setattr(module, "publish", slow)
    publisher = Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, EventBuffer())
    publisher.submit(1, partial(snapshot, 1))
    order.append("training")
    gate.set()
    publisher.submit(2, partial(snapshot, 2))
    publisher.finish()

    assert sorted(order[:2]) == ["begin 1", "training"]
    assert order[2:] == ["end 1", "begin 2", "end 2"]


def test_leftovers_of_earlier_attempts_are_removed_at_the_start(tmp_path):
    """What a killed rank left half-written is gone; what is whole stays."""
    publish(LocalStorage(tmp_path), snapshot(1))
    parent = tmp_path / checkpoints_directory(JOB)
    (parent / ".tmp-step-00000002-1").mkdir()

    Publisher(LocalStorage(tmp_path), JOB, KEEP_ONE, EventBuffer())

    assert [path.name for path in parent.iterdir()] == [checkpoint_name(1)]


def _no_space(descriptor):
    raise OSError(28, "No space left on device")
