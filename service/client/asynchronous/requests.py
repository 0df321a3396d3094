"""What every call of a client does with a request: send it, decode the answer, fetch page after page. Owns the transport."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import httpx

from service.client.address import Address
from service.client.asynchronous.transport import Transport
from service.client.patience import Patience
from service.client.routes import Json, decoded, given

PAGE = 100
Answer = TypeVar("Answer")


class Requests:
    """The part of a client that knows no route."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        home: Path | None = None,
        timeout_s: float = 30.0,
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._transport = Transport(Address(url, token, home), timeout_s, patience or Patience(), http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        """Where requests go now."""
        return self._transport.url

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def _json(self, method: str, path: str, **options: Any) -> Json:
        return decoded(await self._transport.request(method, path, **options))

    async def _answer(self, kind: type[Answer], method: str, path: str, **options: Any) -> Answer:
        """Return a decoded answer as what the service describes it to be; it is not checked."""
        del kind
        return cast("Answer", await self._json(method, path, **options))

    async def _pages(
        self, kind: type[Answer], path: str, params: Mapping[str, Any], limit: int | None, *, size: int = PAGE
    ) -> AsyncIterator[Answer]:
        del kind
        cursor, left = params.get("after"), limit
        while left is None or left > 0:
            num_wanted = size if left is None else min(size, left)
            page = await self._json("GET", path, params=given(**{**params, "after": cursor, "limit": num_wanted}))
            for row in page["data"]:
                yield cast("Answer", row)
            left = None if left is None else left - len(page["data"])
            if not page.get("has_more"):  # of a search a page may be empty and yet not the last
                return
            cursor = page["next_cursor"]
