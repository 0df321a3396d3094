"""Training across hosts, as an operator of several machines meets it. Two network namespaces on a bridge stand for two hosts."""

import time

import pytest

from tests.support.host_ranks import start_job
from tests.support.hosts import DECOY, two_hosts, why_not
from tests.support.jobs import JOB, small_spec
from tests.support.serving import until
from worker.contract import FailureCode

pytestmark = pytest.mark.ranks
LONG = 100_000
COLLECTIVE_TIMEOUT_S = 4.0


@pytest.fixture
def hosts():
    """Two hosts, of which a test may do what it likes."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts() as made:
        yield made


def _in_mid_training(storage):
    until(lambda: list((storage / "jobs" / JOB / "checkpoints").glob("step-*/manifest.json")), 60, "a checkpoint of the job")


def test_four_ranks_on_two_hosts_train_like_one_process(hosts, tmp_path):
    """Same losses at every step, up to rounding; what the ranks say to each other goes over the cable, not over the decoy."""
    left, right = hosts
    spec = {"steps": 6, "precision": "fp64"}
    (tmp_path / "one").mkdir()
    (tmp_path / "four").mkdir()
    one = start_job([left], small_spec(1, **spec), tmp_path / "one").ends(60)
    before = right.received_bytes()
    four = start_job([left, left, right, right], small_spec(4, **spec), tmp_path / "four").ends(60)

    assert [run.outcome for run in four] == ["succeeded"] * 4, four
    print(right.received_bytes() - before, right.received_bytes(DECOY))
    assert four[0].series("train/loss") == pytest.approx(one[0].series("train/loss"), abs=1e-9)
    assert right.received_bytes() - before > 1_000_000
    assert right.received_bytes(DECOY) == 0


def test_a_cut_cable(hosts, tmp_path):
    """x."""
    left, right = hosts
    spec = small_spec(4, steps=LONG, checkpoint={"every_steps": 5})
    job = start_job([left, left, right, right], spec, tmp_path, {"SYNCBN_COLLECTIVE_TIMEOUT_S": str(COLLECTIVE_TIMEOUT_S)})
    _in_mid_training(tmp_path)
    right.cut()
    cut_at = time.monotonic()
    ends = job.ends(60)
    print(time.monotonic() - cut_at, [(end.outcome, end.failure) for end in ends])
    assert [end.failure.code for end in ends] == [FailureCode.PEER_LOST] * 4
