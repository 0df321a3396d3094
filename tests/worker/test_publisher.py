"""Tests of worker/publisher.py."""

import os
import threading

import pytest

from tests.support.checkpoints import snapshot
from worker import publisher as module
from worker.checkpoint import publish, published
from worker.contract import checkpoint_name
from worker.contract.spec import CheckpointSpec
from worker.errors import CheckpointWriteError, StaleFenceError
from worker.progress import EventBuffer
from worker.publisher import Publisher

KEEP_ONE = CheckpointSpec(keep_last=1, keep_best=None)


def _said(events):
    return [(event.type.value, event.data) for event in events.drain(0, 0)[0]]


def test_announced_only_when_published_and_pruned_after(tmp_path):
    """Each event comes after the fact: the checkpoint is on disk, the old one gone."""
    events = EventBuffer()
    publisher = Publisher(tmp_path, KEEP_ONE, events)

    for step in (1, 2):
        publisher.submit(snapshot(step))
    publisher.finish()

    assert [kind for kind, _ in _said(events)] == ["checkpoint", "checkpoint", "pruned"]
    assert _said(events)[-1] == ("pruned", {"steps": [1]})
    assert list(published(tmp_path)) == [2]


def test_a_failed_write_is_a_warning_and_the_job_goes_on(tmp_path, monkeypatch):
    """The disk fails for one checkpoint: the one before stays, the one after is written."""
    events = EventBuffer()
    publisher = Publisher(tmp_path, KEEP_ONE, events)
    publisher.submit(snapshot(1))
    publisher.wait()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _no_space)
        publisher.submit(snapshot(2))
        publisher.wait()
    assert list(published(tmp_path)) == [1]

    publisher.submit(snapshot(3))
    publisher.finish()

    assert [kind for kind, _ in _said(events)] == ["checkpoint", "warning", "checkpoint", "pruned"]
    assert {"code": "checkpoint_not_written", "step": 2}.items() <= _said(events)[1][1].items()
    assert list(published(tmp_path)) == [3]


def test_a_job_without_its_last_checkpoint_has_not_succeeded(tmp_path, monkeypatch):
    """The last one is always written, or the job says that it is not."""
    publisher = Publisher(tmp_path, KEEP_ONE, EventBuffer())
    monkeypatch.setattr(os, "fsync", _no_space)
    publisher.submit(snapshot(1))

    with pytest.raises(CheckpointWriteError, match="No space left"):
        publisher.finish()


def test_a_stale_fence_ends_the_attempt(tmp_path):
    """A rank left over from an earlier attempt learns it at its next checkpoint at the latest."""
    publish(tmp_path, snapshot(1, fence=2))
    publisher = Publisher(tmp_path, KEEP_ONE, EventBuffer())
    publisher.submit(snapshot(2, fence=1))

    with pytest.raises(StaleFenceError):
        publisher.submit(snapshot(3, fence=1))


def test_one_write_at_a_time(tmp_path, monkeypatch):
    """Training goes on during a write, and waits only when the next checkpoint comes too early."""
    gate, order = threading.Event(), []

    def slow(parent, given):
        order.append(f"begin {given.manifest.step}")
        assert gate.wait(30)
        order.append(f"end {given.manifest.step}")
        return publish(parent, given)

    monkeypatch.setattr(module, "publish", slow)
    publisher = Publisher(tmp_path, KEEP_ONE, EventBuffer())
    publisher.submit(snapshot(1))
    order.append("training")
    gate.set()
    publisher.submit(snapshot(2))
    publisher.finish()

    assert sorted(order[:2]) == ["begin 1", "training"]
    assert order[2:] == ["end 1", "begin 2", "end 2"]


def test_leftovers_of_earlier_attempts_are_removed_at_the_start(tmp_path):
    """What a killed rank left half-written is gone; what is whole stays."""
    publish(tmp_path, snapshot(1))
    (tmp_path / ".tmp-step-00000002-1").mkdir()

    Publisher(tmp_path, KEEP_ONE, EventBuffer())

    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(1)]


def _no_space(descriptor):
    raise OSError(28, "No space left on device")
