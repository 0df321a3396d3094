"""Tests of service/tracing.py: the application, the exporter, and a collector on a real port."""

import os
import subprocess
import sys

import pytest

from service.app import create_app
from service.settings import Settings, otlp_endpoint
from service.states import State
from service.store.ids import number_of
from service.tracing import Tracing, TracingError
from tests.service.api.world import BASE_URL, TestClient, World
from tests.support.collector import collector


@pytest.fixture
def collected(monkeypatch):
    """A collector that the environment names, and what it was sent."""
    with collector() as (address, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        yield spans


def test_requests_and_states_are_spans(collected, tmp_path):
    """Under the route's template, and in a trace of the job's own with the times of its states; probes are left out."""
    assert otlp_endpoint()
    tracing = Tracing()
    settings = Settings(home=tmp_path)
    with TestClient(create_app(settings, tracing=tracing), BASE_URL) as client:
        client.headers["Authorization"] = f"Bearer {settings.files.token.read_text().strip()}"
        world = World(client, settings)
        job_id = world.start()
        world.finish(job_id)
        transitions = client.get(f"/v1/jobs/{job_id}").json()["transitions"]
        client.get("/healthz")

    assert {service for service, _ in collected} == {"syncbn"}
    mine = [span for _, span in collected if span.trace_id == number_of(job_id).to_bytes(16)]
    assert [span.name for span in mine] == [State.QUEUED, State.STARTING, State.RUNNING]
    assert [span.end_time_unix_nano for span in mine][:-1] == [span.start_time_unix_nano for span in mine][1:]
    assert [one["state"] for one in transitions] == [span.name for span in mine] + [State.SUCCEEDED]
    names = {span.name for _, span in collected} - {span.name for span in mine}
    assert names == {"POST /v1/jobs", "GET /v1/jobs/{job_id}"}


def test_a_record_of_the_log_names_the_trace_of_its_job(collected):
    """And nothing that only looks like a job."""
    tracing = Tracing()
    job_id = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"

    assert tracing.annotate(None, "", {"job": job_id})["trace_id"] == f"{number_of(job_id):032x}"
    for record in ({"job": "job_\n2026 forged"}, {"job": None}, {}):
        assert "trace_id" not in tracing.annotate(None, "", record)
    with tracing._tracer.start_as_current_span("request") as span:
        assert tracing.annotate(None, "", {"job": job_id})["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    tracing.close()


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    """And does not start without a word, as if traces were sent."""
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)

    with pytest.raises(TracingError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is set .*syncbn\[otel\]"):
        Tracing()


def test_without_the_variable_nothing_of_it_is_loaded():
    """It costs nothing."""
    loaded = "[name for name in sys.modules if 'otlp' in name or name == 'opentelemetry.sdk.trace']"
    code = f"import sys, service.cli.serve, service.app; print({loaded})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment)

    assert done.stdout.strip() == "[]"
