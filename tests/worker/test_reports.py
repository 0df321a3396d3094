"""Tests of worker/reports.py."""

from worker.orders import Request
from worker.progress import EventBuffer
from worker.reports import EVERY_STEP_UP_TO, Reporter
from worker.sampler import Plan
from worker.training import StepResult

RESULT = StepResult(metrics={"loss": 1.5, "accuracy": 0.25}, learning_rate=0.1, request=Request.GO_ON, wait_s=0.01, num_bad=0)


def _reported(num_steps, total_steps, rank=0):
    events = EventBuffer()
    reporter = Reporter(events, Plan(100, 10, None, total_steps))
    reporter.rank = rank
    for step in range(1, num_steps + 1):
        reporter.step(step, RESULT)
    return [event.data for event in events.drain(0, 0, 100_000)[0]]


def test_short_jobs_report_every_step():
    """Nobody has to guess between two points."""
    said = _reported(1000, EVERY_STEP_UP_TO)

    assert [data["step"] for data in said] == list(range(1, 1001))
    assert said[0]["values"] == {"train/loss": 1.5, "train/accuracy": 0.25, "lr": 0.1, "data/wait_s": 0.01}
    assert said[1]["values"]["throughput/samples_per_s"] > 0


def test_long_jobs_report_now_and_then_and_the_last_step():
    """A million events a minute help nobody."""
    said = _reported(EVERY_STEP_UP_TO + 1, EVERY_STEP_UP_TO + 1)

    assert len(said) < 1000
    assert said[-1]["step"] == EVERY_STEP_UP_TO + 1


def test_the_times_of_steps_and_the_memory_are_told_now_and_then():
    """Median and 95th percentile of the last steps; at most five times a second, however quick the steps are."""
    said = [data["values"] for data in _reported(1000, EVERY_STEP_UP_TO)]
    told = [values for values in said if "step/p50_s" in values]

    assert 1 <= len(told) < 100
    assert 0 < told[0]["step/p50_s"] <= told[0]["step/p95_s"]
    assert told[0]["memory/peak_bytes"] > 10 << 20


def test_only_rank_0_reports_metrics():
    """All ranks know the same; one says it."""
    assert _reported(10, 10, rank=1) == []


def test_a_value_that_is_no_number_becomes_a_warning():
    """JSON has no NaN; the reader learns it all the same."""
    events = EventBuffer()
    reporter = Reporter(events, Plan(100, 10, None, 10))
    reporter.rank = 0

    kept = reporter.metrics(5, {"val/loss": float("inf"), "val/accuracy": 0.1})

    assert kept == {"val/accuracy": 0.1}
    warning, metrics = [event.data for event in events.drain(0, 0)[0]]
    assert warning == {"code": "metric_not_finite", "message": "val/loss is inf at step 5 and is left out", "step": 5}
    assert metrics["values"] == kept
