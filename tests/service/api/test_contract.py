"""The OpenAPI document, and a fuzzer that holds the application to it: no 5xx, no status, type or body that is not documented."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.api.world import running
from tests.service.store.ranks import SPEC, metrics

ROUTES = """
GET /healthz
GET /metrics
GET /readyz
GET /v1/cluster
GET /v1/code
POST /v1/code
DELETE /v1/code/{code_id}
GET /v1/comparisons
POST /v1/comparisons
DELETE /v1/comparisons/{comparison_id}
GET /v1/comparisons/{comparison_id}
GET /v1/datasets
GET /v1/jobs
POST /v1/jobs
DELETE /v1/jobs/{job_id}
GET /v1/jobs/{job_id}
PATCH /v1/jobs/{job_id}
POST /v1/jobs/{job_id}/cancel
GET /v1/jobs/{job_id}/checkpoints
DELETE /v1/jobs/{job_id}/checkpoints/{step}
GET /v1/jobs/{job_id}/checkpoints/{step}
GET /v1/jobs/{job_id}/checkpoints/{step}/archive
HEAD /v1/jobs/{job_id}/checkpoints/{step}/archive
POST /v1/jobs/{job_id}/checkpoints/{step}/export
GET /v1/jobs/{job_id}/checkpoints/{step}/files/{name}
HEAD /v1/jobs/{job_id}/checkpoints/{step}/files/{name}
DELETE /v1/jobs/{job_id}/checkpoints/{step}/pin
PUT /v1/jobs/{job_id}/checkpoints/{step}/pin
POST /v1/jobs/{job_id}/checkpoints/{step}/predict
POST /v1/jobs/{job_id}/checkpoints/{step}/recalibrate
GET /v1/jobs/{job_id}/checkpoints/{step}/statistics
GET /v1/jobs/{job_id}/events
POST /v1/jobs/{job_id}/fork
GET /v1/jobs/{job_id}/logs
GET /v1/jobs/{job_id}/metrics
POST /v1/jobs/{job_id}/pause
POST /v1/jobs/{job_id}/resize
POST /v1/jobs/{job_id}/resume
GET /v1/jobs/{job_id}/statistics
GET /v1/models
GET /v1/norms
GET /v1/queue
GET /v1/tokens
POST /v1/tokens
DELETE /v1/tokens/{token_id}
POST /v1/tokens/{token_id}/rotate
GET /v1/usage
""".strip().splitlines()

TOKEN = "tok_01ARZ3NDEKTSV4RRFFQ69G5FAV"
CODE = "code_01ARZ3NDEKTSV4RRFFQ69G5FAV"
_JUNK = st.text(max_size=20) | st.sampled_from(
    ["", "0", "-1", "1e9", "9" * 30, "null", "\x00", "a=b", "..", "%00", "true", "job_1", "\ud7ff"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SPEC, "x"]) | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_KEYS = [
    *SPEC,
    "seed",
    "norm",
    "batch_size",
    "steps",
    "epochs",
    "optimizer",
    "labels",
    "priority",
    "recalibrate",
    "initialize_from",
    "wrong",
]
_SPECS = st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=3).map(lambda changes: SPEC | changes)
_ASKS = st.fixed_dictionaries({"spec": _SPECS, "values": st.lists(_JSON, max_size=3)}, optional={"field": _JSON | st.just("seed")})
_HEADERS = [
    "If-None-Match",
    "If-Match",
    "If-Range",
    "Range",
    "Last-Event-ID",
    "Idempotency-Key",
    "Accept",
    "Content-Type",
    "Content-Length",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One application for all examples: what one leaves behind is the next one's surprise."""
    with running(tmp_path_factory.mktemp("home"), max_requests_per_s=1e6) as world:
        yield world


@pytest.fixture(scope="module")
def document(shared):
    """The OpenAPI document."""
    return shared.client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def job_id(shared):
    """A job with something to see. It runs, so it can be cancelled, and cannot be deleted."""
    job_id = shared.start()
    shared.say(job_id, 0, metrics(1, 1, train_loss=1.0))
    shared.checkpoint(job_id, 10, seq=2)
    return job_id


@pytest.fixture(scope="module")
def comparison_id(shared):
    """A comparison whose jobs wait, so that it cannot be deleted."""
    return shared.client.post("/v1/comparisons", json={"spec": SPEC, "values": ["sync_bn", "group_norm"]}).json()["id"]


def test_the_document_names_the_routes(document):
    """All of them, and no other."""
    paths = document["paths"]

    assert [f"{method.upper()} {path}" for path in sorted(paths) for method in sorted(paths[path])] == ROUTES


def test_every_error_is_documented_as_a_problem(document):
    """Bodies of errors have one shape."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items() if path.startswith("/v1/") else ():
                assert status[0] not in "45" or list(response["content"]) == ["application/problem+json"]


@pytest.mark.parametrize("route", ROUTES)
def test_the_application_keeps_to_its_document(shared, document, job_id, comparison_id, route):
    """Whatever is sent, to what is there and to what is not."""
    method, template = route.split()
    operation = document["paths"][template][method.lower()]
    query = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        known = {
            "job_id": job_id, "comparison_id": comparison_id, "step": "10", "name": "model.safetensors", "token_id": TOKEN, "code_id": CODE,
        }  # fmt: skip
        place = {name: data.draw(st.just(right) | _JUNK, name) for name, right in known.items() if f"{{{name}}}" in template}
        content, content_type = data.draw(_bodies(method), "body")
        headers = data.draw(st.dictionaries(st.sampled_from(_HEADERS), st.text(st.characters(codec="latin-1"), max_size=12), max_size=2))
        request = shared.client.build_request(
            method,
            template.format(**{name: _quoted(value) for name, value in place.items()}),
            params=data.draw(st.dictionaries(st.sampled_from(sorted(query | {"x"})), _JUNK, max_size=3), "query"),
            headers={"Content-Type": content_type} | {name: value.encode("latin-1") for name, value in headers.items()},
            content=content,
        )
        _check(shared.client.send(request), document, operation, template if request.url.path.count("/") == template.count("/") else None)

    holds()


def _bodies(method: str) -> st.SearchStrategy[tuple[bytes, str]]:
    if method not in {"POST", "PATCH"}:
        return st.just((b"", "application/json"))
    written = (_SPECS | _ASKS | _JSON).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20)
    return st.tuples(written, st.sampled_from(["application/json", "application/yaml"]))


def _quoted(value: str) -> str:
    return "".join(f"%{byte:02X}" for byte in value.encode())


def _check(answer: Any, document: dict[str, Any], operation: dict[str, Any], template: str | None) -> None:
    """Hold an answer to the document; where a junk id led to another path, only to the rules of every answer."""
    assert answer.status_code < 500, answer.text
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert media_type == "application/problem+json"
    if template is None or answer.status_code == 304:
        return
    assert str(answer.status_code) in operation["responses"], (answer.status_code, answer.text)
    content = operation["responses"][str(answer.status_code)].get("content", {})
    if answer.request.method == "HEAD" or not answer.content:
        return
    assert media_type in content or answer.status_code >= 400 or media_type == "application/json"
    if media_type in content and media_type.endswith("json"):
        schema = content[media_type].get("schema", {}) | {"components": document["components"]}
        jsonschema.validate(answer.json(), schema)
