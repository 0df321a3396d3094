"""Brings a database to the present schema. The steps are in `migrations/versions`."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from service.store.database import Database
from service.store.errors import DatabaseError

_SCRIPTS = Path(__file__).with_name("migrations")


async def migrate(database: Database) -> None:
    """Run every step that is missing, all in one transaction.

    Raises:
        DatabaseError: the database was written by a newer version.
    """
    async with database.write("schema") as write:
        await write.connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    # Alembic commits step by step unless it finds a transaction, and SQLite's has not begun where nothing was asked of it yet.
    if not connection.in_transaction():
        connection.begin()
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if not connection.in_transaction():
        # SQLite is not asked anything before, and Alembic, which finds no transaction, would commit each step by itself.
        connection.begin()
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise DatabaseError(f"the database cannot be brought to the present schema: {error}; use the version that wrote it") from error
