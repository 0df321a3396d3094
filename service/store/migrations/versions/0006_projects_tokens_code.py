"""Projects, tokens with scopes, uploaded code.

What is there belongs to the project `default`, and the tokens that there are may do everything, as before.
"""

import sqlalchemy as sa
from alembic import op

from service.store.ids import new_id

revision = "0006_projects"
down_revision = "0005_needs"


def upgrade() -> None:
    """Add the columns; make the two tables anew whose keys change."""
    op.add_column("jobs", sa.Column("project", sa.Text, nullable=False, server_default="default"))
    op.create_index("ix_jobs_project_id", "jobs", ["project", "id"])
    _tokens()
    _idempotency_keys()
    op.create_table(
        "bundles",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_files", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("project", "sha256", name="uq_bundles_project_sha256"),
    )


def _rows(table: str) -> list[dict[str, object]]:
    return [dict(row) for row in op.get_bind().execute(sa.text(f"SELECT * FROM {table}")).mappings()]


def _tokens() -> None:
    rows = [{"id": new_id("tok"), "project": "default", "scopes": '["admin"]'} | row for row in _rows("tokens")]
    op.drop_table("tokens")
    table = op.create_table(
        "tokens",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.UniqueConstraint("sha256", name="uq_tokens_sha256"),
    )
    op.bulk_insert(table, rows)


def _idempotency_keys() -> None:
    rows = [{"project": "default"} | row for row in _rows("idempotency_keys")]
    op.drop_table("idempotency_keys")
    table = op.create_table(
        "idempotency_keys",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_idempotency_keys_job_id", "idempotency_keys", ["job_id"])
    op.bulk_insert(table, rows)
