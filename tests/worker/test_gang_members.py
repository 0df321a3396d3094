"""Tests of worker/gang.py that need no Ray; forming, draining and dissolving are tested in tests/service/test_cluster.py."""

import ray

from worker.gang_members import RankDiedError, UnreachableError, read_failure


def test_only_a_known_death_is_a_death():
    """Whatever else goes wrong in Ray says nothing about the rank."""
    assert isinstance(read_failure(ray.exceptions.ActorDiedError()), RankDiedError)
    assert isinstance(read_failure(ray.exceptions.ActorUnavailableError("gone for now", None)), UnreachableError)
    assert isinstance(read_failure(ray.exceptions.GetTimeoutError("late")), UnreachableError)
    assert isinstance(read_failure(RuntimeError("what?")), UnreachableError)
