# Generated from service/client/asynchronous/requests.py by `make format`: change that file.
"""What every call of a client does with a request: send it, decode the answer, fetch page after page. Owns the transport."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import httpx

from service.client.address import Address
from service.client.patience import Patience
from service.client.routes import Json, decoded, given
from service.client.synchronous.transport import Transport

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
        http: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(Address(url, token, home), timeout_s, patience or Patience(), http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where requests go now."""
        return self._transport.url

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    def _json(self, method: str, path: str, **options: Any) -> Json:
        return decoded(self._transport.request(method, path, **options))

    def _answer(self, kind: type[Answer], method: str, path: str, **options: Any) -> Answer:
        """Return a decoded answer as what the service describes it to be; it is not checked."""
        del kind
        return cast("Answer", self._json(method, path, **options))

    def _pages(self, kind: type[Answer], path: str, params: Mapping[str, Any], limit: int | None, *, size: int = PAGE) -> Iterator[Answer]:
        del kind
        cursor, left = params.get("after"), limit
        while left is None or left > 0:
            num_wanted = size if left is None else min(size, left)
            page = self._json("GET", path, params=given(**{**params, "after": cursor, "limit": num_wanted}))
            for row in page["data"]:
                yield cast("Answer", row)
            left = None if left is None else left - len(page["data"])
            if not page.get("has_more"):  # of a search a page may be empty and yet not the last
                return
            cursor = page["next_cursor"]
