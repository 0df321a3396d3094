"""Insert or replace, in the dialect of the database at hand."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from service.store.session import Write


async def upsert(write: Write, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Store rows; where the primary key is there already, the new row wins. Within one call the last one wins."""
    if not rows:
        return
    is_sqlite = write.connection.dialect_name == "sqlite"
    statement = sqlite.insert(table) if is_sqlite else postgresql.insert(table)
    keys = [column.name for column in table.primary_key]
    others = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    await write.connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=others), list(rows))
