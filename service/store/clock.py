"""The database's own clock, in SQL: what leases are measured by, so that no two controllers' clocks need agree."""

from typing import Any, Final

from sqlalchemy import ColumnElement, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from service.store.columns import Instant

_DAY_US: Final = 86_400_000_000


class database_now(FunctionElement[Any]):  # noqa: N801 - it reads as an SQL function
    """The present moment as an Instant, by the clock of the database."""

    type = Instant()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _sqlite(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"


@compiles(database_now, "postgresql")
def _postgres(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


def days_ago(days: int) -> ColumnElement[Any]:
    """The moment so many days ago as an Instant, by the clock of the database."""
    moment: ColumnElement[Any] = database_now() - literal(days * _DAY_US)
    return moment
