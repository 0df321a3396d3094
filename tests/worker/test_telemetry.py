"""Tests of worker/telemetry.py, and of what a training job tells with it."""

import pytest

from syncbn import LayerTelemetry
from tests.support.jobs import run_job, small_spec
from worker.telemetry import FIRST_STEPS, MAX_LAYERS, MAX_SAMPLES, cost, is_watched, record_of

LAYER = LayerTelemetry("a", 2, 1, 2, 1000, 0.25, 64.0, 0.123456, float("nan"), float("inf"), None)


@pytest.mark.parametrize("total_steps", [1, 2, 48, 99, 100, 1_999, 5_000, 50_000, 1_000_003])
def test_a_job_is_watched_now_and_then_and_at_its_last_step(total_steps):
    """Every job is, none more often than it bears."""
    watched = [step for step in range(total_steps) if is_watched(step, total_steps)]

    assert watched[-1] == total_steps - 1
    assert len(watched) <= min(MAX_SAMPLES, max(21, total_steps // 100) + len(FIRST_STEPS), total_steps // 10 + len(FIRST_STEPS))


def test_a_short_job_has_a_course_to_show():
    """A job of a minute is a curve, not a point; the first step of all, which warms up, is not measured."""
    assert [step + 1 for step in range(36) if is_watched(step, 36)] == [2, 5, 10, 20, 30, 36]
    assert 1 not in {step + 1 for step in range(10_000) if is_watched(step, 10_000)}


def test_a_report_is_short_and_has_only_what_json_can_say():
    """Four digits, no infinity, and not a thousand layers."""
    told = record_of(7, {str(number): LAYER for number in range(MAX_LAYERS + 3)})

    assert (told.step, len(told.layers), told.num_left_out) == (7, MAX_LAYERS, 3)
    entry = told.layers[0]
    assert (entry.mean_drift, entry.variance_drift, entry.between_to_within, entry.bytes_sent) == (0.1235, None, None, 1000)


def test_the_cost_is_that_of_all_layers_and_nothing_without_any():
    """The figures of a table of comparisons."""
    assert cost({"a": LAYER, "b": LAYER}) == {"sync/time_s": 0.5, "sync/bytes": 2000.0}
    assert cost({}) == {"sync/time_s": 0.0, "sync/bytes": 0.0}


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["sync_bn", "batch_norm", "group_norm"])
def test_a_job_tells_what_synchronizing_costs(pool, tmp_path, kind):
    """Rank 0 reports the 20 layers of a ResNet-18 at the second and the last step; a kind that sends nothing costs nothing."""
    first, second = run_job(pool, small_spec(2, norm={"kind": kind}), tmp_path)
    assert first.outcome == "succeeded", first.failure
    reports, sent = first.of("telemetry"), first.series("sync/bytes")

    assert second.of("telemetry") == []
    assert [len(one["layers"]) for one in reports] == ([] if kind == "group_norm" else [20, 20])
    assert (sent[-1] > 0, first.series("sync/time_s")[-1] > 0) == ((kind == "sync_bn",) * 2)
    if kind == "sync_bn":
        layer = reports[-1]["layers"][0]
        # Width 4: 2 x 4 + 1 numbers forward and 2 x 4 backward, of 8 bytes.
        assert (reports[-1]["step"], layer["num_ranks"], layer["bytes_sent"], layer["num_values"]) == (3, 2, 136, 97 * 64)
        assert layer["mean_drift"] > 0
        assert 0 < layer["between_to_within"] < 1
