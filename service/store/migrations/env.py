"""Alembic's entry: runs the steps on the connection that `service.store.migration` hands over."""

from alembic import context

from service.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
# The caller's transaction is already open and covers all steps.
context.run_migrations()
