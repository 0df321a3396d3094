"""Where the service is and what opens its door: arguments first, then the environment, then the files in the home.

Owns the order of these; `service.settings` owns the names of variables and files.
"""

import json
from pathlib import Path
from urllib.parse import urlsplit

from service.client.errors import AddressError, Unreachable
from service.settings import ClientSettings, Home

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Address:
    """A base URL and a token. An address found in the home follows a controller that comes back on another port.

    A home named in the call goes before a URL and a token that happen to be in the environment, which may be another controller's.
    """

    def __init__(self, url: str | None = None, token: str | None = None, home: Path | None = None) -> None:
        settings = ClientSettings() if home is None else ClientSettings(home=home, url="", token="")
        self._home = Home(settings.home.expanduser())
        given = url or settings.url
        self._fixed = _checked(given) if given else ""
        self.url = self._fixed
        self.token = _printable((token or settings.token.get_secret_value()).strip())
        self.refresh()

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine."""
        return not self.url or urlsplit(self.url).hostname in _LOOPBACK

    def refresh(self) -> None:
        """Look again into the home; what was given stays."""
        self.url = self._fixed or running_url(self._home)
        self.token = self.token or _printable(_read_token(self._home))

    def require(self) -> None:
        """Raise Unreachable where no address is known at all."""
        if not self.url:
            raise Unreachable("", f"no controller runs on the home {self._home.path}")


def running_url(home: Home) -> str:
    """Return the URL that the home's controller wrote down, empty if none did."""
    try:
        url = json.loads(home.controller.read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return url.rstrip("/") if isinstance(url, str) else ""


def _read_token(home: Home) -> str:
    try:
        return home.token.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _checked(url: str) -> str:
    parts = urlsplit(url)
    try:
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535
        is_good = False
    if not is_good:
        raise AddressError(f"the service's URL is {url!r}; expected http://HOST:PORT or https://HOST; mend SYNCBN_URL or the url given")
    return url.rstrip("/")


def _printable(token: str) -> str:
    """Return a token that can stand in a header. The message does not repeat it: it is a secret, if a damaged one."""
    if not (token.isascii() and token.isprintable()):
        raise AddressError(
            "the token has characters that no token has; expected the content of the file `token` of the home; mend SYNCBN_TOKEN"
        )
    return token
