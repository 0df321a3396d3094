"""Alembic's scripts: how each version of the schema became the next."""
