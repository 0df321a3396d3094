"""Tests of service/api/telemetry.py: the layers of a running job over HTTP."""

from tests.service.store.ranks import said
from tests.service.test_telemetry import layer
from worker.contract import EventType


def _told(seq, step, *layers):
    return said(seq, EventType.TELEMETRY, step=step, layers=[one.model_dump() for one in layers], num_left_out=0)


def test_a_running_job_shows_its_layers(world):
    """What the heat map of the dashboard is drawn from."""
    job_id = world.start()
    empty = world.client.get(f"/v1/jobs/{job_id}/statistics").json()
    world.say(job_id, 0, *(_told(seq, seq * 50, layer("bn1", seq / 10), layer("bn2")) for seq in range(1, 11)))
    shown = world.client.get(f"/v1/jobs/{job_id}/statistics").json()

    assert empty == {"steps": [], "layers": []}
    assert shown["steps"] == list(range(50, 501, 50))
    assert [one["name"] for one in shown["layers"]] == ["bn1", "bn2"]
    assert shown["layers"][0]["mean_drift"] == [seq / 10 for seq in range(1, 11)]
    assert shown["layers"][0]["newest"]["bytes_sent"] == 136


def test_a_long_history_is_thinned_out_evenly_with_its_end(world):
    """As many steps as the picture has columns."""
    job_id = world.start()
    world.say(job_id, 0, *(_told(seq, seq, layer("bn1")) for seq in range(1, 11)))
    steps = [world.client.get(f"/v1/jobs/{job_id}/statistics?max_points={most}").json()["steps"] for most in (1, 4, 9, 10, 100)]

    assert steps == [[10], [2, 5, 7, 10], [1, 2, 3, 4, 5, 6, 7, 8, 10], list(range(1, 11)), list(range(1, 11))]


def test_a_layer_or_a_job_that_is_not_there(world):
    """404, and which of the two."""
    job_id = world.start()
    codes = [world.client.get(f"/v1/jobs/{name}/statistics?layer=x").json()["code"] for name in (job_id, "job_" + "0" * 26)]

    assert codes == ["layer_not_found", "job_not_found"]
