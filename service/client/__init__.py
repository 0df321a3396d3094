"""The Python client of the REST API: what a script, the CLI and the demo use to talk to a controller.

Owns requests, retries, live streams and verified downloads; knows nothing of how jobs are run. This face re-exports, against the house
rule, because `from service.client import Client` is public.
"""

from service.client.client import Client
from service.client.errors import (
    AddressError,
    BadRequest,
    ClientError,
    Conflict,
    Denied,
    DownloadError,
    Failing,
    IntegrityError,
    NotFound,
    PackError,
    ServiceError,
    Unreachable,
)

__all__ = [
    "AddressError",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "Denied",
    "DownloadError",
    "Failing",
    "IntegrityError",
    "NotFound",
    "PackError",
    "ServiceError",
    "Unreachable",
]
