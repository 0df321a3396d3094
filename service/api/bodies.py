"""Reads request bodies: bounded while they arrive, JSON or YAML, to plain values. What they mean is the caller's."""

import asyncio
from typing import Any, Final

import yaml
from fastapi import Request
from pydantic_core import from_json
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from service.api.context import context_of
from service.errors import MalformedError, MediaTypeError, TooLargeError, TooSlowError

JSON: Final = frozenset({"application/json"})
YAML: Final = frozenset({"application/yaml", "application/x-yaml", "text/yaml"})
MAX_DEPTH: Final = 64


async def read_json_or_yaml(request: Request) -> Any:
    """Return the body as plain values, decoded by its Content-Type."""
    media_type = media_type_of(request, JSON | YAML)
    body = await _bounded(request)
    return decode_json(body) if media_type in JSON else decode_yaml(body)


async def read_json(request: Request) -> Any:
    """Return the body, which must be JSON, as plain values."""
    media_type_of(request, JSON)
    return decode_json(await _bounded(request))


def decode_json(body: bytes) -> Any:
    """Return a JSON document as plain values.

    Raises:
        MalformedError: not JSON, not UTF-8, nested too deeply, or a number that JSON does not have.

    >>> decode_json(b'{"a": 1}')
    {'a': 1}
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedError(f"the body is no JSON: {error}") from error


def decode_yaml(body: bytes) -> Any:
    """Return a YAML document as plain values.

    Raises:
        MalformedError: not YAML, nested too deeply, or with aliases, which could unfold without bound.

    >>> decode_yaml(b"a: [1, 2]")
    {'a': [1, 2]}
    """
    try:
        _check_shape(body)
        return yaml.load(body, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedError(f"the body is no YAML: {' '.join(str(error).split())[:300]}") from error


def _check_shape(body: bytes) -> None:
    depth = 0
    for event in yaml.parse(body, Loader=yaml.CSafeLoader):
        if isinstance(event, AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here; write the value out")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")


def media_type_of(request: Request, known: frozenset[str]) -> str:
    """Return the media type of the body, or raise MediaTypeError where it is none of those that are known."""
    given = request.headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    if media_type not in known:
        expected = " or ".join(sorted(known))
        raise MediaTypeError(
            f"Content-Type {given[:100]!r} is not read here; expected {expected}; set the header",
            headers={"Accept": ", ".join(sorted(known))},
        )
    return media_type


async def _bounded(request: Request) -> bytes:
    settings = (await context_of(request)).settings
    return await read_bounded(request, settings.max_body_bytes, settings.body_timeout_s)


async def read_bounded(request: Request, most: int, timeout_s: float) -> bytes:
    """Return the body.

    Raises:
        TooLargeError: it has more than `most` bytes; what is beyond is not read.
        TooSlowError: it has not arrived whole within timeout_s; the connection is closed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, most)
    except TimeoutError as error:
        detail = f"the body has not arrived within {timeout_s:g} s; expected it sooner; send less, or over a faster line"
        raise TooSlowError(detail, headers={"Connection": "close"}) from error


async def _read(request: Request, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLargeError(f"the body has more than {most} bytes; expected at most {most}; send less")
        parts.append(part)
    return b"".join(parts)
