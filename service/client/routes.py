"""Paths and parameters of requests, and what their answers are decoded to. Pure."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from service.client.errors import ClientError

Json = dict[str, Any]


def route(*parts: str | int) -> str:
    """Return the path of a route. An id with a slash in it stays one part.

    >>> route("jobs", "../x", 3)
    '/v1/jobs/..%2Fx/3'
    """
    return "/".join(("/v1", *(quote(str(part), safe="") for part in parts)))


def given(**params: Any) -> dict[str, Any]:
    """Return the parameters that have a value, for a query.

    >>> given(name=None, limit=3)
    {'limit': 3}
    """
    return {name: value for name, value in params.items() if value is not None}


def decoded(response: httpx.Response) -> Json:
    """Return the JSON object of an answer that has been read.

    Raises:
        ClientError: it is none.
    """
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        url = response.request.url
        raise ClientError(
            f"{response.request.method} {url.path} answered {response.text[:80]!r}; expected a JSON object; is {url.scheme}://"
            f"{url.netloc.decode()} a syncbn service?"
        )
    return answer


def ahead_s(response: httpx.Response) -> float:
    """Return by how many seconds the clock of whoever answered is ahead of this one; HTTP's times are cut to whole seconds.

    Raises:
        ClientError: the answer has no time.
    """
    try:
        told = parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError) as error:
        raise ClientError(
            f"{response.request.url} answered without a Date; expected the time of the answer; is a proxy in between?"
        ) from error
    return (told - datetime.now(UTC)).total_seconds() + 0.5
