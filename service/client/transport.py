"""One request at a time, tried again where that is safe. Owns retries and their waits; knows no route.

Tried again: connections that fail and answers 429, 502, 503, 504, for requests that may be repeated. GET and HEAD always may; POST only
where the caller says so, because the service recognizes the repetition (an Idempotency-Key, or an action that is the same done twice).
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from service.client.address import Address
from service.client.errors import Unreachable, from_response

PASSING = frozenset({429, 502, 503, 504})
"""Statuses that a later try may not meet again."""


@dataclass(frozen=True)
class Patience:
    """How often and how long to try again. The wait doubles from `first_wait_s`, spread by chance so that clients do not march in step."""

    tries: int = 5
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0

    def wait_s(self, failures: int, retry_after: str | None = None) -> float:
        """Return how long to wait after so many failures in a row; a Retry-After in seconds is obeyed up to the longest wait."""
        doubled = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return max(doubled * random.uniform(0.75, 1.0), min(self.longest_wait_s, _seconds(retry_after)))  # noqa: S311 - no secret


def _seconds(retry_after: str | None) -> float:
    try:
        seconds = float(retry_after or 0)
    except ValueError:  # the other form, an HTTP date, is not worth a clock comparison
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


class Transport:
    """A connection pool to one service, which may move (a controller restarted on another port) between requests."""

    def __init__(self, address: Address, timeout_s: float, patience: Patience, http: httpx.BaseTransport | None = None) -> None:
        self._address = address
        self.patience = patience
        # Proxies of the environment are for the outside world; a controller on the loopback must not be looked for there.
        self._pool = httpx.Client(
            timeout=timeout_s, transport=http, trust_env=not address.is_local, headers={"User-Agent": "syncbn-client"}
        )

    @property
    def url(self) -> str:
        """Where the next request goes."""
        return self._address.url

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    def request(
        self, method: str, path: str, *, is_repeatable: bool | None = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Return the successful answer, read whole.

        Raises:
            ServiceError: the service refused. Unreachable: nobody answered, in any try.
        """
        repeatable = method in {"GET", "HEAD"} if is_repeatable is None else is_repeatable
        return self._try(self.patience.tries if repeatable else 1, lambda: self._send(method, path, headers, options, is_whole=True))

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, tries: int | None = None, **options: Any
    ) -> Iterator[httpx.Response]:
        """Open a successful answer to a GET whose body the caller reads; errors while reading are the caller's."""
        response = self._try(tries or self.patience.tries, lambda: self._send("GET", path, headers, options, is_whole=False))
        try:
            yield response
        finally:
            response.close()

    def _try(self, tries: int, send: Callable[[], httpx.Response]) -> httpx.Response:
        for failures in range(1, tries + 1):
            retry_after = None
            try:
                response = send()
            except httpx.TransportError as error:
                if failures == tries:
                    raise Unreachable(self._address.url, str(error) or type(error).__name__) from error
                self._address.refresh()
            else:
                if response.is_success:
                    return response
                if response.status_code not in PASSING or failures == tries:
                    raise from_response(response)
                retry_after = response.headers.get("retry-after")
            time.sleep(self.patience.wait_s(failures, retry_after))
        raise AssertionError(tries)

    def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None, options: dict[str, Any], *, is_whole: bool
    ) -> httpx.Response:
        self._address.require()
        authorization = {"Authorization": f"Bearer {self._address.token}"} if self._address.token else {}
        request = self._pool.build_request(method, self._address.url + path, headers={**authorization, **(headers or {})}, **options)
        response = self._pool.send(request, stream=True)
        if is_whole or not response.is_success:
            try:
                response.read()
            finally:
                response.close()
        return response
