"""The OpenAPI document: what FastAPI finds out by itself, and what it cannot know: error bodies, the body of a submission."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.api.comparisons import ComparisonAsk
from service.api.derivations import ExportAsk, ForkAsk, RecalibrateAsk
from service.api.schemas import JobEdit, ProblemShape, ResizeAsk
from service.api.tokens import TokenRequest
from worker.contract import JobSpec

_EVERY_ROUTE: Final = {
    "400": "malformed",
    "401": "no admitted token",
    "403": "the token lacks a scope, or a foreign host",
    "422": "readable, and wrong",
    "429": "too many requests or streams with this token",
}
_BODY: Final = {"408": "the body did not arrive in time", "413": "body too large"}
_BY_ROUTE: Final = {
    ("POST", "/v1/jobs"): _BODY | {"415": "neither JSON nor YAML"},
    ("PATCH", "/v1/jobs/{job_id}"): _BODY | {"412": "another edition", "415": "not JSON"},
    ("POST", "/v1/tokens"): _BODY | {"415": "not JSON"},
    ("POST", "/v1/code"): _BODY | {"415": "neither zip nor tar.gz"},
    ("POST", "/v1/jobs/{job_id}/cancel"): {"409": "ended otherwise"},
    ("POST", "/v1/jobs/{job_id}/pause"): {"409": "ended, or about to"},
    ("POST", "/v1/jobs/{job_id}/resume"): {"409": "not paused"},
    ("POST", "/v1/jobs/{job_id}/resize"): _BODY | {"409": "ended, or about to", "415": "not JSON"},
    ("DELETE", "/v1/jobs/{job_id}"): {"409": "not ended"},
    ("DELETE", "/v1/jobs/{job_id}/checkpoints/{step}"): {"409": "pinned, or the newest of a job that has not ended"},
    ("POST", "/v1/jobs/{job_id}/fork"): _BODY | {"415": "not JSON"},
    ("POST", "/v1/jobs/{job_id}/checkpoints/{step}/recalibrate"): _BODY | {"409": "no running statistics", "415": "not JSON"},
    ("POST", "/v1/jobs/{job_id}/checkpoints/{step}/export"): _BODY | {"415": "not JSON"},
    ("POST", "/v1/jobs/{job_id}/checkpoints/{step}/predict"): _BODY | {"409": "no images are classified with it here", "415": "no image"},
    ("POST", "/v1/comparisons"): _BODY | {"415": "neither JSON nor YAML"},
    ("DELETE", "/v1/comparisons/{comparison_id}"): {"409": "not ended"},
}
_DOWNLOAD: Final = {"412": "another file", "416": "outside of the file", "500": "the file is not what its manifest says"}
_BODIES: Final[dict[tuple[str, str], tuple[type[BaseModel], tuple[str, ...]]]] = {
    ("POST", "/v1/jobs"): (JobSpec, ("application/json", "application/yaml")),
    ("PATCH", "/v1/jobs/{job_id}"): (JobEdit, ("application/json",)),
    ("POST", "/v1/jobs/{job_id}/resize"): (ResizeAsk, ("application/json",)),
    ("POST", "/v1/comparisons"): (ComparisonAsk, ("application/json", "application/yaml")),
    ("POST", "/v1/tokens"): (TokenRequest, ("application/json",)),
    ("POST", "/v1/jobs/{job_id}/fork"): (ForkAsk, ("application/json",)),
    ("POST", "/v1/jobs/{job_id}/checkpoints/{step}/recalibrate"): (RecalibrateAsk, ("application/json",)),
    ("POST", "/v1/jobs/{job_id}/checkpoints/{step}/export"): (ExportAsk, ("application/json",)),
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the document of an application, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _complete(document)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    models: list[type[BaseModel]] = [ProblemShape, *(model for model, _ in _BODIES.values())]
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(method.upper(), path, operation)


def _complete_operation(method: str, path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if path.startswith("/v1/"):
        responses |= {status: _error(text) for status, text in _errors(method, path).items()}
    if (method, path) in _BODIES:
        model, media_types = _BODIES[method, path]
        reference = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(media_types, reference)}


def _errors(method: str, path: str) -> dict[str, str]:
    errors = _EVERY_ROUTE | _BY_ROUTE.get((method, path), {})
    if "{" in path:
        errors |= {"404": "not here"}
    if path.endswith("/predict"):
        errors |= {"500": "the file is not what its manifest says"}
    if path.endswith(("/files/{name}", "/archive", "{step}/statistics")):
        errors |= _DOWNLOAD
    if "/checkpoints" in path:
        errors |= {"503": "the object store, or the process that predicts, does not answer"}
    return errors


def _error(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemShape"}}}}
