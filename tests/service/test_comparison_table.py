"""Tests of service/comparison_table.py: from stored records to the table."""

from dataclasses import replace

import pytest

from service.comparison_table import Score, Stage, names_needed, row_of, row_of_deleted, stage_of
from service.states import State
from service.store.records import Job, Progress
from tests.service.store.ranks import AT, spec
from worker.contract import Health

JOB = Job(
    id="job_A", project="default", name="t", state=State.RUNNING, reason="training", message="training on 2 workers", labels={}, priority=0,
    created_at=AT, started_at=AT, finished_at=None, progress=Progress(30, 100), world_size=2,
    metrics={"train/loss": 0.5, "val/loss": 0.7, "val/accuracy": 0.8, "lr": 0.1},
    fence=1, attempt=1, spec_json=spec().model_dump_json(), last_seq=9, edition=1,
)  # fmt: skip
SERIES = {
    "val/accuracy": [(10, 0.7), (20, 0.9), (30, 0.8)],
    "val/loss": [(10, 0.6), (20, 0.5), (30, 0.7)],
    "throughput/samples_per_s": [(1, 1.0), (2, 100.0), (3, 110.0)],
    "sync/time_s": [(10, 0.004), (20, 0.002)],
    "sync/bytes": [(10, 1360.0), (20, 1360.0)],
}
HEALTHY = Health(status="healthy")


def test_a_row_says_what_came_of_a_variant():
    """Newest and best on the validation data, medians of what every step has, the health of the newest checkpoint."""
    row = row_of("sync_bn", JOB, SERIES, HEALTHY)

    assert (row.value, row.job_id, row.state, row.step, row.total_steps) == ("sync_bn", "job_A", State.RUNNING, 30, 100)
    assert row.validation == {"val/accuracy": Score(last=0.8, best=0.9), "val/loss": Score(last=0.7, best=0.5)}
    assert (row.train_loss, row.samples_per_s, row.sync_time_s, row.sync_bytes) == (0.5, 100.0, 0.003, 1360.0)
    assert row.health == HEALTHY


def test_what_is_not_known_yet_is_none():
    """A job that waits, and one that has been deleted."""
    waiting = row_of("a", replace(JOB, state=State.QUEUED, metrics={}, progress=Progress()), {}, None)
    deleted = row_of_deleted("b", "job_B")

    for row in (waiting, deleted):
        assert (row.train_loss, row.samples_per_s, row.sync_time_s, row.health, dict(row.validation)) == (None, None, None, None, {})
    assert (deleted.state, deleted.message) == (None, "the job has been deleted")


def test_only_what_the_table_needs_is_read():
    """Of a job with many series."""
    assert names_needed(replace(JOB, metrics=dict.fromkeys([*SERIES, "lr", "train/loss", "gradient/norm"], 1.0))) == list(SERIES)


@pytest.mark.parametrize(
    ("states", "stage"),
    [
        ([State.QUEUED, State.QUEUED], Stage.QUEUED),
        ([State.QUEUED, State.RUNNING], Stage.RUNNING),
        ([State.QUEUED, State.SUCCEEDED], Stage.RUNNING),
        ([State.SUCCEEDED, State.CANCELLING], Stage.RUNNING),
        ([State.SUCCEEDED, State.PAUSED], Stage.RUNNING),
        ([State.SUCCEEDED, State.FAILED, State.CANCELLED], Stage.ENDED),
        ([State.SUCCEEDED, None], Stage.ENDED),
        ([None, None], Stage.ENDED),
    ],
)
def test_a_comparison_has_ended_when_all_of_its_jobs_have(states, stage):
    """Until then it runs, or waits as a whole."""
    assert stage_of(states) is stage
