"""Comparisons, which jobs belong to them, and jobs that wait for one to choose their norm."""

import sqlalchemy as sa
from alembic import op

revision = "0007_comparisons"
down_revision = "0006_projects"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("field", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.UniqueConstraint("project", "idempotency_key", name="uq_comparisons_idempotency_key"),
    )
    op.create_table(
        "variants",
        sa.Column("comparison_id", sa.Text, sa.ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
    )
    op.create_table("norm_choices", sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True))
