"""What can go wrong between a client and the service, as one tree.

ClientError
|-- AddressError        the URL or the token that was given cannot be one; the user's to mend
|-- Unreachable         nobody answered; trying again helps once a controller runs
|-- ServiceError        the service answered and refused, or failed
|   |-- BadRequest          400, 413, 415, 416, 422: what was asked cannot be done; the user's to mend
|   |-- Denied              401, 403: the token is missing, wrong or not allowed to do this
|   |-- NotFound            404, 410: there is no such thing, or no longer
|   |-- Conflict            409, 412, 428: it is in a state in which this cannot be done
|   `-- Failing             429 and 5xx: the service is overloaded or broken; trying again later may help
|-- PackError           a directory of code cannot be packed; the user's to mend
|-- PlotError           there is nothing to show in a figure yet
|-- MissingExtra        what was asked for needs an optional package; the user's to install
`-- DownloadError       a file did not arrive; run the download again and it goes on where it stopped
    `-- IntegrityError      the bytes that arrived are not those of the manifest
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx


class ClientError(Exception):
    """Anything that this client raises on purpose."""


class AddressError(ClientError):
    """The URL or the token that was given cannot be one."""


class Unreachable(ClientError):  # noqa: N818 - the word a user knows
    """No controller answered at the address."""

    def __init__(self, url: str, cause: str) -> None:
        self.url = url
        super().__init__(f"no service answers at {url or 'any known address'} ({cause}): start one with `syncbn serve`, or set SYNCBN_URL")


class PackError(ClientError):
    """A directory of code cannot be packed for upload."""


class PlotError(ClientError):
    """There is nothing to show in a figure yet."""


class MissingExtra(ClientError):  # noqa: N818
    """What was asked for needs an optional package."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed; expected the extra {extra!r}: pip install 'syncbn[{extra}]'")


class ServiceError(ClientError):
    """The service answered with a problem document (RFC 9457)."""

    def __init__(self, status: int, code: str, detail: str, errors: tuple[Mapping[str, Any], ...] = ()) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        super().__init__(detail)


class BadRequest(ServiceError):  # noqa: N818
    """What was asked cannot be done; `errors` says where, what was found, what was expected and what to do."""


class Denied(ServiceError):  # noqa: N818
    """The token is missing, unknown or not allowed to do this."""


class NotFound(ServiceError):  # noqa: N818
    """There is no such job, checkpoint, file or layer."""


class Conflict(ServiceError):  # noqa: N818
    """The thing is in a state in which this cannot be done."""


class Failing(ServiceError):  # noqa: N818
    """The service is overloaded, stopping or broken."""


class DownloadError(ClientError):
    """A file could not be fetched whole."""


class IntegrityError(DownloadError):
    """A file does not have the size or the digest that its manifest promises."""


_CLASSES: dict[int, type[ServiceError]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    410: NotFound,
    409: Conflict,
    412: Conflict,
    428: Conflict,
}


def from_response(response: httpx.Response) -> ServiceError:
    """Turn an error answer, whose body has been read, into the error to raise; any body will do."""
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        body = {}
    if not isinstance(body, dict):
        body = {}
    status = response.status_code
    kind = _CLASSES.get(status, Failing if status == 429 or status >= 500 else BadRequest)
    detail = body.get("detail") or body.get("title") or f"the service answered {status} {response.reason_phrase}"
    errors = body.get("errors")
    rows = tuple(row for row in errors if isinstance(row, dict)) if isinstance(errors, list) else ()
    return kind(status, str(body.get("code") or f"http_{status}"), str(detail), rows)
