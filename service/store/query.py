"""Statements that are built once and run often, on rows as they are stored.

For a job that SQLite finds in twenty microseconds SQLAlchemy needs a hundred times as long: it builds the statement, looks it up, lends a
connection, and turns every value. Who reads this way turns what he needs (`service.store.columns`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, Insert, Select, Table, Update, type_coerce
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeDecorator

Row = Sequence[Any]
_SQLITE: Final = sqlite.dialect()


class Query:
    """A SELECT of columns as they are stored, with named values."""

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement
        compiled = statement.compile(dialect=_SQLITE)
        self.sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        self._fixed = compiled.params

    def parameters(self, values: Mapping[str, Any]) -> list[Any]:
        """Return what SQLite is to put into the places, in their order."""
        return [values[name] if name in values else self._fixed[name] for name in self._names]


class Command:
    """An INSERT of whole rows, or an UPDATE, with named values, which are given as they are and stored as their columns store them.

    For few rows that are found by their keys: SQLite is asked at once, not in a thread.
    """

    def __init__(self, statement: Insert | Update) -> None:
        self.statement = statement
        compiled = statement.compile(dialect=_SQLITE)
        self.sql = str(compiled)
        types = {name: bind.type.dialect_impl(_SQLITE) for name, bind in compiled.binds.items()}
        self._places = [(name, types[name].bind_processor(_SQLITE)) for name in compiled.positiontup or ()]

    def parameters(self, values: Mapping[str, Any]) -> list[Any]:
        """Return what SQLite is to put into the places, in their order."""
        return [values[name] if process is None else process(values[name]) for name, process in self._places]


class Snapshot(Protocol):
    """The database at one moment."""

    async def rows(self, query: Query, **values: Any) -> Sequence[Row]:
        """Return what a statement finds."""


class Prepared(Snapshot, Protocol):
    """A transaction that writes."""

    async def run(self, command: Command, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement for each row of values."""


def stored(table: Table) -> list[ColumnElement[Any]]:
    """Return the columns of a table as they are stored: instants in microseconds, JSON as text."""
    return [
        type_coerce(column, column.type.impl_instance).label(column.name) if isinstance(column.type, TypeDecorator) else column
        for column in table.c
    ]
