"""Tests of service/telemetry.py: what the ranks told, over steps and layers."""

import pytest

from service.errors import NotFoundError
from service.store.records import Event
from service.telemetry import lay_out, readable
from tests.service.store.ranks import AT
from worker.contract import EventType, LayerRecord, TelemetryRecord


def layer(name: str, drift: float | None = 0.5, **changes) -> LayerRecord:
    """Return one layer's record."""
    values = {"num_ranks": 2, "num_calls": 1, "num_reductions": 2, "bytes_sent": 136, "time_s": 0.001, "num_values": 64.0}
    rest = {"variance_drift": 0.25, "between_to_within": 0.01, "effective_num_values": 50.0}
    return LayerRecord(**{"name": name, **values, "mean_drift": drift, **rest, **changes})


def test_layers_and_steps_make_a_grid():
    """A step at which a layer was not told of is None, and the newest record of each is there."""
    records = [
        TelemetryRecord(step=50, layers=(layer("a", 1.0), layer("b", 2.0))),
        TelemetryRecord(step=100, layers=(layer("a", 3.0, time_s=0.5),)),
    ]
    history = lay_out(records)

    assert history.steps == (50, 100)
    assert [one.newest.name for one in history.layers] == ["a", "b"]
    assert [one.mean_drift for one in history.layers] == [(1.0, 3.0), (2.0, None)]
    assert [one.variance_drift for one in history.layers] == [(0.25, 0.25), (0.25, None)]
    assert history.layers[0].newest.time_s == 0.5


def test_a_step_that_was_done_again_counts_as_done_last():
    """After a restart from step 50, steps 100 and 150 come again."""
    told = [(50, 1.0), (100, 2.0), (150, 3.0), (100, 4.0)]
    history = lay_out([TelemetryRecord(step=step, layers=(layer("a", drift),)) for step, drift in told])

    assert (history.steps, history.layers[0].mean_drift) == ((50, 100, 150), (1.0, 4.0, 3.0))


def test_one_layer_of_many_and_none_of_that_name():
    """I ask for the layer that I look at; a name that is none is said to be none."""
    records = [TelemetryRecord(step=50, layers=(layer("a"), layer("b")))]

    assert [one.newest.name for one in lay_out(records, ["b"]).layers] == ["b"]
    with pytest.raises(NotFoundError, match=r"layer 'c' was not told of; expected one of a, b; leave \?layer= out"):
        lay_out(records, ["b", "c"])
    assert lay_out([]).layers == ()


def test_an_event_of_another_version_is_passed_over():
    """One line that cannot be read does not hide the rest."""
    good = TelemetryRecord(step=50, layers=(layer("a"),))
    events = [Event(seq, AT, EventType.TELEMETRY, 1, 0, data) for seq, data in enumerate([{"step": 1}, good.model_dump()], 1)]

    assert list(readable(events)) == [good]
