"""Tests of service/api/metering.py."""

from prometheus_client.parser import text_string_to_metric_families

from tests.service.store.ranks import SPEC


def _samples(world) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = world.client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_not_by_id(world):
    """However many jobs are asked for, the series stay few; what no route serves has one of its own."""
    for job_id in [world.submit()["id"] for _ in range(3)]:
        world.client.get(f"/v1/jobs/{job_id}")
    world.client.get("/nowhere")
    samples = _samples(world)
    of = lambda method, route, status: samples["syncbn_http_requests_total", (("method", method), ("route", route), ("status", status))]  # noqa: E731

    assert of("POST", "/v1/jobs", "201") == 3
    assert of("GET", "/v1/jobs/{job_id}", "200") == 3
    assert of("GET", "none", "404") == 1
    assert samples["syncbn_http_request_duration_seconds_count", (("method", "GET"), ("route", "/v1/jobs/{job_id}"))] == 3


def test_refused_requests_are_counted_too(world):
    """An attack shows."""
    world.client.post("/v1/jobs", json=SPEC, headers={"Host": "evil.example"})

    assert any(name == "syncbn_http_requests_total" and ("status", "403") in labels for name, labels in _samples(world))


def test_the_gauges_tell_jobs_streams_and_process(world):
    """What dashboards and alerts are written against."""
    world.submit()
    samples = _samples(world)

    assert samples["syncbn_jobs", (("state", "queued"),)] >= 1
    assert {"syncbn_streams_open", "syncbn_cluster_connected", "syncbn_jobs_supervised", "process_resident_memory_bytes"} <= {
        name for name, _ in samples
    }
