"""One request at a time, tried again where that is safe. Owns connections; when to try again is decided by `service.client.patience`."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from service.client.address import Address
from service.client.asynchronous import blocking
from service.client.errors import Unreachable, from_response
from service.client.patience import PASSING, Patience


class Transport:
    """A connection pool to one service, which may move (a controller restarted on another port) between requests."""

    def __init__(self, address: Address, timeout_s: float, patience: Patience, http: httpx.AsyncBaseTransport | None = None) -> None:
        self._address = address
        self.patience = patience
        # Proxies of the environment are for the outside world; a controller on the loopback must not be looked for there.
        self._pool = httpx.AsyncClient(
            timeout=timeout_s, transport=http, trust_env=not address.is_local, headers={"User-Agent": "syncbn-client"}
        )

    @property
    def url(self) -> str:
        """Where the next request goes."""
        return self._address.url

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    async def request(
        self, method: str, path: str, *, is_repeatable: bool | None = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Return the successful answer, read whole.

        Raises:
            ServiceError: the service refused. Unreachable: nobody answered, in any try.
        """
        tries = self.patience.tries_of(method, is_repeatable=is_repeatable)
        return await self._answer(method, path, headers, options, tries=tries, is_whole=True)

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, tries: int | None = None, **options: Any
    ) -> AsyncIterator[httpx.Response]:
        """Open a successful answer to a GET whose body the caller reads; errors while reading are the caller's."""
        response = await self._answer("GET", path, headers, options, tries=tries or self.patience.tries, is_whole=False)
        try:
            yield response
        finally:
            await response.aclose()

    async def _answer(
        self, method: str, path: str, headers: Mapping[str, str] | None, options: dict[str, Any], *, tries: int, is_whole: bool
    ) -> httpx.Response:
        for failures in range(1, tries + 1):
            retry_after = None
            try:
                response = await self._send(method, path, headers, options, is_whole=is_whole)
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
            await blocking.sleep(self.patience.wait_s(failures, retry_after))
        raise AssertionError(tries)

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None, options: dict[str, Any], *, is_whole: bool
    ) -> httpx.Response:
        self._address.require()
        authorization = {"Authorization": f"Bearer {self._address.token}"} if self._address.token else {}
        request = self._pool.build_request(method, self._address.url + path, headers={**authorization, **(headers or {})}, **options)
        response = await self._pool.send(request, stream=True)
        if is_whole or not response.is_success:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response
