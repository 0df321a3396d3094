"""Tests of service/api/problems.py, bodies.py, guards.py and context.py: whatever comes in, a clear answer goes out."""

import json

import pytest

from service.api import jobs as routes
from tests.service.api.world import running
from tests.service.store.ranks import SPEC

PROBLEM_KEYS = ["type", "title", "status", "code", "detail", "errors"]
JOB = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
JSON = {"Content-Type": "application/json"}
YAML = {"Content-Type": "application/yaml"}


def _is_problem(answer, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert list(body) == PROBLEM_KEYS
    assert body["detail"]
    for error in body["errors"]:
        assert list(error) == ["loc", "value", "expected", "remedy"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nope", "route_not_found"),
        ("/v1/nope", "route_not_found"),
        ("/v1/jobs/", "route_not_found"),
        (f"/v1/jobs/{JOB}", "job_not_found"),
        ("/v1/jobs/1", "job_not_found"),
        ("/v1/jobs/job_%00", "job_not_found"),
        ("/v1/jobs/%ff%fe", "job_not_found"),
        (f"/v1/jobs/{JOB}%0A", "job_not_found"),
        (f"/v1/jobs/{JOB}/events", "job_not_found"),
        (f"/v1/jobs/{JOB}/metrics", "job_not_found"),
        (f"/v1/jobs/{JOB}/logs", "job_not_found"),
        (f"/v1/jobs/{JOB}/checkpoints", "job_not_found"),
        (f"/v1/jobs/{JOB}/checkpoints/latest", "job_not_found"),
        (f"/v1/jobs/{JOB}/checkpoints/{'9' * 400}", "job_not_found"),
    ],
)
def test_what_is_not_here_is_404(world, path, code):
    """Unknown or malformed, the answer is the same."""
    _is_problem(world.client.get(path), 404, code)


@pytest.mark.parametrize("step", ["9" * 400, "-1", "1", "latest", "%00"])
def test_a_checkpoint_that_is_not_here_is_404(world, step):
    """Of a job that is."""
    _is_problem(world.client.get(f"/v1/jobs/{world.submit()['id']}/checkpoints/{step}"), 404, "checkpoint_not_found")


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("limit=0", "query.limit"),
        ("limit=101", "query.limit"),
        (f"limit={'9' * 5000}", "query.limit"),
        ("limit=x", "query.limit"),
        ("after=x", "query.after"),
        ("after=%00", "query.after"),
        ("after=job_01ARZ3NDEKTSV4RRFFQ69G5FAV%0A", "query.after"),
        ("state=happy", "query.state"),
        ("state=", "query.state"),
        ("label=team", "query.label"),
        ("label==x", "query.label"),
    ],
)
def test_a_wrong_query_is_422_and_says_where(world, query, loc):
    """Cursors and limits are checked like everything else."""
    answer = world.client.get(f"/v1/jobs?{query}")

    _is_problem(answer, 422, "invalid_request")
    assert answer.json()["errors"][0]["loc"] == loc


@pytest.mark.parametrize("query", ["after=-1", f"after={2**63}", "after=1.5", "limit=1001", "limit=-1"])
def test_a_wrong_cursor_of_events_is_422(world, query):
    """Beyond 64 bits too."""
    job_id = world.submit()["id"]

    _is_problem(world.client.get(f"/v1/jobs/{job_id}/events?{query}"), 422, "invalid_request")
    _is_problem(world.client.get(f"/v1/jobs/{job_id}/logs?{query}"), 422, "invalid_request")


def test_a_wrong_method_is_405_and_says_which_are_right(world):
    """All of them, whichever route comes first."""
    answer = world.client.put(f"/v1/jobs/{JOB}")

    _is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, PATCH"


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", JSON),
        (b"{", JSON),
        (b'{"name": "\xff"}', JSON),
        (b'{"name": "\\ud800"}', JSON),
        (b'{"seed": NaN}', JSON),
        (b"[" * 100_000, JSON),
        (b'{"a":' * 100_000, JSON),
        (b"a: [", YAML),
        (b"a: \xff\xfe", YAML),
        (b"\x00", YAML),
        (b"a: &x [1]\nb: *x", YAML),
        (b"[" * 100_000, YAML),
        (b"a: !!python/object/apply:os.system [ls]", YAML),
        (b"? [a]\n: b", YAML),
        (b"a: 1\n---\nb: 2", YAML),
        (b"a: 2001-99-99", YAML),
    ],
)
def test_a_body_that_cannot_be_read_is_400(world, content, headers):
    """Broken, too deep, or in a language that is not spoken here."""
    _is_problem(world.client.post("/v1/jobs", content=content, headers=headers), 400, "malformed_body")


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"null", JSON),
        (b"[]", JSON),
        (b'"job"', JSON),
        (b"1" * 4000, JSON),
        (json.dumps(SPEC | {"name": "a\x00b"}).encode(), JSON),
        (json.dumps(SPEC | {"seed": 10**400}).encode(), JSON),
        (json.dumps(SPEC | {"labels": {"\x00": "x"}}).encode(), JSON),
        (json.dumps(SPEC | {"model": {"name": "resnet18", "args": {"width": 1e400}}}).encode().replace(b"Infinity", b"1e400"), JSON),
        (b"", YAML),
        (b"1: 2", YAML),
        (b"name: 2001-01-01", YAML),
        (b"a: !!binary aGk=", YAML),
    ],
)
def test_a_body_that_makes_no_job_is_422(world, content, headers):
    """Readable, and wrong."""
    _is_problem(world.client.post("/v1/jobs", content=content, headers=headers), 422, "invalid_spec")


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"])
def test_a_body_of_another_type_is_415(world, media_type):
    """And says which types are read."""
    answer = world.client.post("/v1/jobs", content=b"{}", headers={"Content-Type": media_type})

    _is_problem(answer, 415, "unsupported_media_type")
    assert answer.headers["accept"] == "application/json or application/x-yaml or application/yaml or text/yaml".replace(" or ", ", ")


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_that_is_too_large_is_413(world, is_announced):
    """With and without Content-Length; a body of exactly the limit is read."""
    most = world.settings.max_body_bytes

    def parts(size):
        yield from (b" " * min(65536, size - start) for start in range(0, size, 65536))

    send = lambda size: world.client.post("/v1/jobs", content=b" " * size if is_announced else parts(size), headers=JSON)  # noqa: E731
    _is_problem(send(most + 1), 413, "body_too_large")
    _is_problem(send(most), 400, "malformed_body")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dTpw", "Bearer sbn_wrong", "Bearer " + "x" * 5000, "Bearer \xff"])
@pytest.mark.parametrize(
    "path", ["/v1/jobs", f"/v1/jobs/{JOB}", "/v1/jobs?limit=0", "/v1/cluster", f"/v1/jobs/{JOB}/checkpoints/1/files/x"]
)
def test_no_admitted_token_is_401(world, path, header):
    """Before anything else is looked at."""
    del world.client.headers["Authorization"]
    answer = world.client.get(path, headers={} if header is None else {"Authorization": header.encode("latin-1")})

    _is_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_every_route_of_the_api_wants_a_token(world):
    """None is forgotten."""
    del world.client.headers["Authorization"]
    paths = world.client.get("/openapi.json").json()["paths"]
    checked = 0
    for template, operations in paths.items():
        path = template.format(job_id=JOB, step="latest", name="model.safetensors", token_id="tok", comparison_id="cmp", code_id="code")
        for method in operations if template.startswith("/v1/") else ():
            answer = world.client.request(method.upper(), path)
            checked += 1
            assert answer.status_code == 401, (method, path)
    assert checked > 15


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_health_and_description_need_no_token(world, path):
    """Probes have none."""
    del world.client.headers["Authorization"]

    assert world.client.get(path).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8470", "169.254.169.254", "[::2]"])
def test_a_foreign_host_is_refused(world, host):
    """DNS rebinding: a page elsewhere whose name leads here."""
    _is_problem(world.client.get("/v1/jobs", headers={"Host": host}), 403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8470", "127.0.0.1:8470", "127.8.8.8", "[::1]:8470"])
def test_the_names_of_this_machine_are_served(world, host):
    """However the user calls it."""
    assert world.client.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.example", "http://[", "file://"])
def test_a_foreign_origin_is_refused(world, origin):
    """A page of another site speaks through the user's browser."""
    _is_problem(world.client.get("/v1/jobs", headers={"Origin": origin}), 403, "origin_not_allowed")


def test_the_own_origin_is_served(world):
    """The dashboard is one."""
    assert world.client.get("/v1/jobs", headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_a_named_host_is_served(tmp_path):
    """Behind a proxy the operator names it."""
    with running(tmp_path, allowed_hosts=("Train.example.org",)) as world:
        assert world.client.get("/v1/jobs", headers={"Host": "train.example.org"}).status_code == 200
        assert world.client.get("/v1/jobs", headers={"Host": "other.example.org"}).status_code == 403


def test_a_service_for_a_network_takes_any_name_but_no_foreign_origin(tmp_path):
    """Bound to every address, it cannot know its names; a page of another site is still foreign."""
    with running(tmp_path, host="0.0.0.0") as world:
        get = lambda **headers: world.client.get("/v1/jobs", headers={"Host": "train.example:8470"} | headers).status_code  # noqa: E731
        assert get() == 200
        assert get(Origin="https://train.example") == 200
        assert get(Origin="https://evil.example") == 403


def test_a_fault_of_ours_is_500_with_a_number_and_no_traceback(world, monkeypatch, caplog):
    """The number finds the traceback in the log."""

    def fail(_document):
        raise RuntimeError("the inside")

    monkeypatch.setattr(routes, "parse_spec", fail)
    answer = world.client.post("/v1/jobs", json=SPEC)

    _is_problem(answer, 500, "internal_error")
    assert "the inside" not in answer.text
    [record] = [record for record in caplog.records if record.exc_info and "the inside" in str(record.exc_info[1])]
    assert record.args[0] in answer.json()["detail"]


def test_every_answer_tells_browsers_to_be_careful(world):
    """No sniffing, no framing, nothing from elsewhere; answers of the API are not kept."""
    for path in ("/v1/jobs", "/nope", "/healthz"):
        headers = world.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


def test_prometheus_reads_the_counts(fresh):
    """By state, without a token."""
    fresh.submit()

    assert 'syncbn_jobs{state="queued"} 1.0' in fresh.client.get("/metrics").text
