"""The Python client of the REST API: what a script, the CLI and the demo use to talk to a controller.

Owns requests, retries, live streams and verified downloads; knows nothing of how jobs are run. `asynchronous` is written by hand,
`synchronous` is generated from it. This face re-exports, against the house rule, because `from service.client import Client` is public.
"""

from service.client.asynchronous.client import AsyncClient
from service.client.asynchronous.job import AsyncJob
from service.client.errors import (
    AddressError,
    BadRequest,
    ClientError,
    Conflict,
    Denied,
    DownloadError,
    Failing,
    IntegrityError,
    MissingExtra,
    NotFound,
    PackError,
    PlotError,
    ServiceError,
    Unreachable,
)
from service.client.synchronous.client import Client
from service.client.synchronous.job import Job

__all__ = [
    "AddressError",
    "AsyncClient",
    "AsyncJob",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "Denied",
    "DownloadError",
    "Failing",
    "IntegrityError",
    "Job",
    "MissingExtra",
    "NotFound",
    "PackError",
    "PlotError",
    "ServiceError",
    "Unreachable",
]
