"""What every request passes before the routes, and every answer after them: whose host it names, how much it sends, what a browser may do.

DNS rebinding: a page of another site can have its own name resolve to 127.0.0.1 and so speak to a controller that listens there. Its
requests then carry a foreign Host, or a foreign Origin.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import answer
from service.errors import ForeignHostError, ServiceError, TooLargeError
from service.settings import Settings

UPLOADS: Final = "/v1/code"
"""The path whose bodies may be larger than others."""
_STRICT: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# Nothing is from elsewhere; nothing is inline but style attributes, which Plotly writes. Its heat maps are images from data: addresses.
_PAGE: Final = _STRICT + (
    "; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
    "; trusted-types 'none'; require-trusted-types-for 'script'"
)


class Guards:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._most_of = {UPLOADS: settings.max_code_bytes}
        self._most = settings.max_body_bytes
        self._names = frozenset(name.lower() for name in settings.allowed_hosts)
        self._takes_any_host = not is_loopback(settings.host) and not self._names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on and finish the headers of its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _finish(MutableHeaders(scope=message), path)
            await send(message)

        try:
            self._check(Headers(scope=scope), self._most_of.get(path, self._most))
        except ServiceError as error:
            await answer(error)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _check(self, headers: Headers, most: int) -> None:
        host = host_name(headers.get("host", ""))
        if not self._takes_any_host and not is_ours(host, self._names):
            raise ForeignHostError(f"host {host[:100]!r} is not served; expected localhost; to serve it, name it in SYNCBN_ALLOWED_HOSTS")
        origin = headers.get("origin")
        if origin is not None and host_name(_netloc(origin)) not in {host, *self._names}:
            detail = (
                f"origin {origin[:100]!r} is not ours; expected that of this service; to allow it, name its host in SYNCBN_ALLOWED_HOSTS"
            )
            raise ForeignHostError(detail, code="origin_not_allowed")
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise TooLargeError(f"the body has {length[:30]} bytes; expected at most {most}; send less")


def host_name(netloc: str) -> str:
    """Return the host of `host:port`, in lower case and without brackets.

    >>> host_name("[::1]:8470"), host_name("LocalHost:80"), host_name("a.b")
    ('::1', 'localhost', 'a.b')
    """
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0].lower()
    return netloc.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Return whether a name or an address leads to this machine and cannot be made to lead elsewhere.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "evil.example")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_ours(host: str, names: Iterable[str]) -> bool:
    """Return whether a request may name this host."""
    return is_loopback(host) or host in names


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _finish(headers: MutableHeaders, path: str) -> None:
    is_page = path == "/" or path.startswith("/dashboard/")
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Content-Security-Policy", _PAGE if is_page else _STRICT)
    # A page asks each time whether its files are still those of the running version; what the API answers is kept nowhere.
    headers.setdefault("Cache-Control", "no-cache" if is_page else "no-store")
