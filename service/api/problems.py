"""Turns every error into `application/problem+json` (RFC 9457). The one boundary at which foreign exceptions become ours."""

import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import compile_path

from service.errors import InvalidError, NotFoundError, RequestError, ServiceError, UnreachableError
from service.store.errors import DatabaseAwayError
from worker.contract import Problem, SpecError
from worker.storage.storage import StorageUnreachableError

RETRY_AFTER_S: Final = 2
"""When to ask again while the database is away."""

_TITLES: Final = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    412: "Precondition failed",
    413: "Body too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Invalid",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}
_MISSING_BY_PARAMETER: Final = {
    "job_id": "job_not_found",
    "token_id": "token_not_found",
    "step": "checkpoint_not_found",
    "name": "file_not_found",
    "comparison_id": "comparison_not_found",
}
_EXPECTATIONS: Final = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}

_log = logging.getLogger(__name__)


def problem(status: int, code: str, detail: str, problems: Iterable[Problem] = (), headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer that says an error."""
    body = {
        "type": f"urn:syncbn:error:{code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "code": code,
        "detail": detail,
        "errors": [one.model_dump(mode="json") for one in problems],
    }
    # ASCII: a lone surrogate in an echoed value must not keep the error from being said.
    content = json.dumps(body, ensure_ascii=True)
    return Response(content, status, headers=dict(headers or {}), media_type="application/problem+json")


def answer(error: ServiceError) -> Response:
    """Return the answer to one of our errors."""
    if not isinstance(error, RequestError):
        _log.error("%s: %s", error.code, error.detail)
    return problem(error.status, error.code, error.detail, error.problems, error.headers)


def install(app: FastAPI) -> None:
    """Have every error of an application answered in this way."""
    handlers: dict[type[Exception], Callable[[Request, Any], Any]] = {
        ServiceError: _ours,
        SpecError: _spec,
        RequestValidationError: _parameters,
        HTTPException: _http,
        ClientDisconnect: _gone,
        StorageUnreachableError: _unreachable,
        DatabaseAwayError: _database_away,
        Exception: _unforeseen,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def problems_of(details: Iterable[ErrorDetails | Mapping[str, Any]]) -> list[Problem]:
    """Return pydantic's findings as problems, each with its dotted place."""
    return [_problem_of(detail) for detail in details]


def _problem_of(detail: ErrorDetails | Mapping[str, Any]) -> Problem:
    loc = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    given, context = detail.get("input"), detail.get("ctx", {})
    value = given if isinstance(given, str | int | float | bool) else None
    if detail["type"] == "rule":
        return Problem(loc=loc, value=value, expected=context["expected"], remedy=context["remedy"])
    if detail["type"] == "extra_forbidden":
        return Problem(loc=loc, value=value, expected="a known key", remedy=f"leave {loc} out")
    expected = _EXPECTATIONS.get(detail["type"]) or _expectation(str(detail["msg"]))
    return Problem(loc=loc, value=value, expected=expected, remedy=f"set {loc} to {expected}" if loc else f"send {expected}")


def _expectation(message: str) -> str:
    """Turn pydantic's 'Input should be X' into X.

    >>> _expectation("Input should be greater than or equal to 1"), _expectation("String should match pattern '^a$'")
    ('a number greater than or equal to 1', "something that matches pattern '^a$'")
    >>> _expectation("List should have at least 2 items after validation, not 1")
    'at least 2 items'
    """
    counted = re.match(r"^\w+ should have (at (?:least|most) [0-9]+ \w+)", message)
    if counted:
        return counted[1]
    text = re.sub(r"^(Input|String|Value|Data) should (be )?", "", message)
    return re.sub(r"^match ", "something that matches ", re.sub(r"^(greater|less) than", r"a number \1 than", text))


async def _ours(_request: Request, error: ServiceError) -> Response:
    return answer(error)


async def _spec(_request: Request, error: SpecError) -> Response:
    return answer(InvalidError.of(error.problems, code="invalid_spec"))


async def _parameters(_request: Request, error: RequestValidationError) -> Response:
    for detail in error.errors():
        place, name = (*detail["loc"], "", "")[:2]
        if place == "path":
            code = _MISSING_BY_PARAMETER.get(str(name), "not_found")
            return answer(NotFoundError(f"{name} {str(detail.get('input'))[:200]!r} is not here; expected one that is listed", code=code))
    return answer(InvalidError.of(problems_of(error.errors())))


async def _http(request: Request, error: HTTPException) -> Response:
    path, headers = request.url.path[:200], dict(error.headers or {})
    if error.status_code == 404:
        return problem(404, "route_not_found", f"path {path!r} is not here; expected a path of the API; see /docs", headers=headers)
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request.app, request.url.path)) or headers.get("Allow", headers.get("allow", ""))
        headers.pop("allow", None)
        detail = f"{request.method[:20]} is not possible on {path!r}; expected one of {headers['Allow']}"
        return problem(405, "method_not_allowed", detail, headers=headers)
    return problem(error.status_code, "http_error", str(error.detail), headers=headers)


def _methods(app: FastAPI, path: str) -> list[str]:
    """Return what all routes of a path together allow; the router knows only of the first."""
    allowed = {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if compile_path(template)[0].match(path)
        for method in operations
    }
    return sorted(allowed)


async def _database_away(_request: Request, error: DatabaseAwayError) -> Response:
    _log.error("the database is away: %s", error)
    detail = "the database does not answer now; what was acknowledged is safe; try again, a submission with the same Idempotency-Key"
    return problem(503, "database_unavailable", detail, headers={"Retry-After": str(RETRY_AFTER_S)})


async def _gone(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=400)


async def _unreachable(_request: Request, error: StorageUnreachableError) -> Response:
    return answer(UnreachableError(f"{error}; expected a storage that answers; see its state and the credentials, and try again"))


async def _unforeseen(request: Request, error: Exception) -> Response:
    number = secrets.token_hex(6)
    _log.error("error %s: %s %s", number, request.method, request.url.path, exc_info=error)
    detail = f"this is a fault of the service, noted as {number}; look for that number in its log"
    return problem(500, "internal_error", detail)
