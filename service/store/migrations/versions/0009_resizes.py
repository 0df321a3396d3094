"""The number of ranks that a live job is to have, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0009_resizes"
down_revision = "0008_operating"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", sa.Column("resize_to", sa.Integer))
    op.add_column("jobs", sa.Column("resize_why", sa.Text))
