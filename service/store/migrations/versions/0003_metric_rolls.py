"""The lowest and the highest point of every stretch of a metric series, so that long series are drawn without reading them whole."""

import sqlalchemy as sa
from alembic import op

revision = "0003_metric_rolls"
down_revision = "0002_leases"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "metric_rolls",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("level", sa.Integer, primary_key=True),
        sa.Column("bucket", sa.BigInteger, primary_key=True),
        sa.Column("low_step", sa.BigInteger, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("high_step", sa.BigInteger, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
    )
