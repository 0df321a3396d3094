"""The client against the OpenAPI document: every request is one of a documented route, and every route has a method."""

import inspect
import re
from contextlib import suppress

import httpx
import pytest

from service.app import create_app
from service.client import Client, IntegrityError
from service.settings import Settings

ARGUMENTS = {
    "spec": {"name": "a"}, "job_id": "JOB", "step": 3, "token_id": "TOKEN", "comparison_id": "COMPARISON", "values": [1], "name": "n",
    "scopes": ["read"], "names": ["a"], "types": ["log"], "state": "running", "label": "a=b", "search": "x", "after": "7", "rank": 0,
    "limit": 1, "max_points": 5, "layer": "bn1", "against": 2, "overlap_s": 1.0, "priority": 1, "workers": 2, "labels": {"a": "b"},
    "formats": ["plain"], "from_step": 1, "to_step": 9, "code_id": "CODE", "contains": "x",
}  # fmt: skip
"""By name, a value for every parameter that a request says something of."""
LOCAL = {"url", "close", "export_tensorboard", "mirror_to_mlflow"}
"""Methods that ask nobody, or that ask by other methods."""
WITHOUT_METHOD = {
    "GET /metrics": "for Prometheus",
    "GET /v1/jobs/{job_id}/checkpoints/{step}/archive": "download() fetches the same files, resumed and verified",
    "HEAD /v1/jobs/{job_id}/checkpoints/{step}/archive": "as above",
    "HEAD /v1/jobs/{job_id}/checkpoints/{step}/files/{name}": "the manifest says it",
}
MANIFEST = {"step": 3, "files": {"model.safetensors": {"size": 2, "sha256": "0" * 64}}}


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """The OpenAPI document."""
    return create_app(Settings(home=tmp_path_factory.mktemp("home"))).openapi()


class Recorder(httpx.BaseTransport):
    """Answers every request with something that each method can read, and keeps what was asked."""

    def __init__(self):
        self.requests = []

    def handle_request(self, request):
        """Give one answer for all."""
        request.read()
        self.requests.append(request)
        if "text/event-stream" in request.headers.get("accept", ""):
            return httpx.Response(204)
        row = {"id": "JOB", "state": "succeeded"}
        headers = {"date": "Sat, 21 Nov 2026 04:00:00 GMT"}
        return httpx.Response(200, headers=headers, json={**row, "data": [row], "has_more": False, "spec": {}, "series": [], **MANIFEST})


def _asked(name, tmp_path):
    """Return the requests that a method makes when it is given everything that it takes."""
    recorder = Recorder()
    arguments = {**ARGUMENTS, "directory": tmp_path / "c", "path": tmp_path / "code.zip", "image": tmp_path / "image.png"}
    (tmp_path / "code.zip").write_bytes(b"PK")
    (tmp_path / "image.png").write_bytes(b"PNG")
    with Client("http://127.0.0.1:1", "t", http=recorder) as client:
        method = getattr(client, name)
        taken = {key: arguments[key] for key in inspect.signature(method).parameters if key in arguments}
        with suppress(IntegrityError, httpx.StreamError):  # what the recorder answers is no checkpoint
            answer = method(**taken)
            if inspect.isgenerator(answer):
                list(answer)
    return recorder.requests


def _route(document, request):
    """Return the documented route of a request."""
    for template, operations in document["paths"].items():
        pattern = re.sub(r"\{[^}]+\}", "[^/]+", template)
        if request.method.lower() in operations and re.fullmatch(pattern, request.url.path):
            return f"{request.method} {template}", operations[request.method.lower()]
    return None


METHODS = sorted(name for name, _ in inspect.getmembers(Client) if not name.startswith("_") and name not in LOCAL)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "describe"])
def test_a_method_asks_only_what_is_documented(document, name, tmp_path):
    """Paths, methods, query parameters and bodies are those of the document."""
    requests = _asked(name, tmp_path)
    assert requests
    for request in requests:
        found = _route(document, request)
        assert found, f"{request.method} {request.url}"
        _, operation = found
        known = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}
        assert set(request.url.params) <= known
        assert not request.content or request.headers["content-type"] in operation["requestBody"]["content"]


def test_every_route_has_a_method(document, tmp_path):
    """Nothing of the service is out of a script's reach but what is listed here with its reason."""
    asked = set()
    for number, name in enumerate(METHODS):
        (tmp_path / str(number)).mkdir()
        asked |= {found[0] for request in _asked(name, tmp_path / str(number)) if (found := _route(document, request))}
    routes = {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations}
    assert routes - asked == set(WITHOUT_METHOD)


def test_an_undocumented_request_is_found(document):
    """The tests above can fail."""
    assert _route(document, httpx.Request("GET", "http://x/v1/nonsense")) is None
