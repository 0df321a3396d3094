"""Ranks on two hosts, without Ray: they meet, train as one process does, and say so when the cable is cut."""

import pytest

from tests.support.host_ranks import start_job
from tests.support.hosts import DECOY, INTERFACE
from tests.support.jobs import JOB, small_spec
from tests.support.serving import until
from worker.contract import FailureCode

pytestmark = pytest.mark.ranks
ENDLESS = 1_000_000
COLLECTIVE_TIMEOUT_S = 4.0
LEAVING_S = 15.0
"""How long processes may take to say their last word and to be gone, on a busy machine."""


def test_four_ranks_on_two_hosts_train_like_one_process(hosts, tmp_path):
    """Same losses at every step, up to rounding, and what the ranks say to each other goes over the cable."""
    left, right = hosts
    storages = [tmp_path / "one", tmp_path / "four"]
    for storage in storages:
        storage.mkdir()
    one = start_job([left], small_spec(1, precision="fp64"), storages[0])
    four = start_job([left, left, right, right], small_spec(4, precision="fp64"), storages[1])
    alone, together = one.ends(60)[0], four.ends(60)

    assert [rank.outcome for rank in together] == ["succeeded"] * 4, together
    assert len(alone.series("train/loss")) == 3
    assert together[0].series("train/loss") == pytest.approx(alone.series("train/loss"), abs=1e-9)
    assert together[0].series("val/loss") == pytest.approx(alone.series("val/loss"), abs=1e-9)
    assert right.received_bytes(INTERFACE) > 1_000_000
    assert right.received_bytes(DECOY) == left.received_bytes(DECOY) == 0


def test_ranks_that_trust_their_host_names_do_not_meet(hosts, tmp_path):
    """The hosts are such that the interface must be chosen: each one's name means 127.0.0.1, as on many machines."""
    left, right = hosts
    ends = start_job([left, right], small_spec(2), tmp_path, {"SYNCBN_COLLECTIVE_TIMEOUT_S": "1"}, is_interface_chosen=False).ends(60)

    assert [end.outcome for end in ends] == ["failed", "failed"]
    assert any("remote=[127.0.0.1]" in end.failure.message for end in ends), ends


def test_a_cut_cable_is_a_named_error_on_every_rank(hosts, tmp_path):
    """Nobody is told that packets are lost; still every rank ends after the collective timeout, says why, and leaves no process."""
    left, right = hosts
    spec = small_spec(4, steps=ENDLESS, checkpoint={"every_steps": 2})
    job = start_job([left, left, right, right], spec, tmp_path, {"SYNCBN_COLLECTIVE_TIMEOUT_S": str(COLLECTIVE_TIMEOUT_S)})
    until(lambda: list((tmp_path / "jobs" / JOB / "checkpoints").glob("step-*/manifest.json")), 60, "a checkpoint")
    right.cut()
    ends = job.ends(COLLECTIVE_TIMEOUT_S + LEAVING_S)

    assert [end.failure.code for end in ends] == [FailureCode.PEER_LOST] * 4
    assert all("another rank went away or did not answer" in end.failure.message for end in ends)
    assert left.pids() == right.pids() == []
