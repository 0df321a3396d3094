"""Column types that mean the same in every database: instants, words and JSON."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any, overload

from sqlalchemy import BigInteger, Dialect, Text
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Instant(TypeDecorator[datetime]):
    """A moment, stored as whole microseconds since 1970 in UTC: exact and sortable, whatever the database thinks of time zones."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - the signature is SQLAlchemy's
        """Return the microseconds. A naive time is an error of the caller."""
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the signature is SQLAlchemy's
        """Return the time in UTC."""
        return instant(value)


class Words(TypeDecorator[str]):
    """Text for people. What a database cannot hold, NUL and lone surrogates, becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - the signature is SQLAlchemy's
        """Return the text."""
        return None if value is None else _text(value).replace("\0", "\ufffd")


class JsonText(TypeDecorator[Any]):
    """A JSON value as text. What JSON cannot say is mended on the way in, so that reading it back never fails."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002 - the signature is SQLAlchemy's
        """Return the text."""
        return dump_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 - the signature is SQLAlchemy's
        """Return the value."""
        return None if value is None else json.loads(value)


@overload
def instant(microseconds: int) -> datetime: ...
@overload
def instant(microseconds: int | None) -> datetime | None: ...
def instant(microseconds: int | None) -> datetime | None:
    """Return a stored moment as a time in UTC.

    >>> instant(1_500_000)
    datetime.datetime(1970, 1, 1, 0, 0, 1, 500000, tzinfo=datetime.timezone.utc)
    """
    return None if microseconds is None else _EPOCH + microseconds * _MICROSECOND


def dump_json(value: Any) -> str:
    r"""Return a value as strict JSON: non-finite numbers become null, lone surrogates become U+FFFD.

    >>> dump_json({"loss": float("nan"), "text": "a\ud800b", "n": 1})
    '{"loss":null,"text":"a\ufffdb","n":1}'
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except (ValueError, TypeError):
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return _text(value)
    return value if value is None or isinstance(value, bool | int | float) else _text(repr(value))


def _text(value: str) -> str:
    return "".join("\ufffd" if 0xD800 <= ord(letter) <= 0xDFFF else letter for letter in value)
