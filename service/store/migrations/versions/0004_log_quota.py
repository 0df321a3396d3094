"""How much a job has logged, so that its quota can be kept. What older jobs logged is not counted."""

import sqlalchemy as sa
from alembic import op

revision = "0004_log_quota"
down_revision = "0003_metric_rolls"


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("log_bytes", sa.BigInteger, nullable=False, server_default="0"))
