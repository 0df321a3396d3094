"""How long jobs have run, who submitted them, what their checkpoints weigh, and which code they use.

Live jobs are taken to have run since they first did, as before. Who submitted the jobs that are there is not known any more.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0008_operating"
down_revision = "0007_comparisons"


def upgrade() -> None:
    """Add the columns and the table, and fill them from what is there."""
    connection = op.get_bind()
    op.add_column("jobs", sa.Column("submitter", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("ran_us", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("running_since", sa.BigInteger))
    live = "('running', 'recovering', 'pausing', 'cancelling')"
    connection.execute(sa.text(f"UPDATE jobs SET running_since = started_at WHERE state IN {live}"))
    op.add_column("checkpoints", sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"))
    for job_id, step, manifest in connection.execute(sa.text("SELECT job_id, step, manifest FROM checkpoints")).all():
        size = sum(entry["size"] for entry in json.loads(manifest)["files"].values())
        update = sa.text("UPDATE checkpoints SET size_bytes = :size WHERE job_id = :job_id AND step = :step")
        connection.execute(update, {"size": size, "job_id": job_id, "step": step})
    op.add_column("bundles", sa.Column("uploaded_at", sa.BigInteger, nullable=False, server_default="0"))
    connection.execute(sa.text("UPDATE bundles SET uploaded_at = created_at"))
    _code_uses(connection)


def _code_uses(connection: sa.Connection) -> None:
    uses = op.create_table(
        "code_uses",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("bundle_id", sa.Text, sa.ForeignKey("bundles.id"), nullable=False),
    )
    op.create_index("ix_code_uses_bundle_id", "code_uses", ["bundle_id"])
    known = set(connection.execute(sa.text("SELECT id FROM bundles")).scalars())
    named = sa.text("""SELECT id, spec FROM jobs WHERE spec LIKE '%"code":"code!_%' ESCAPE '!'""")
    pairs = [(job_id, json.loads(spec).get("code")) for job_id, spec in connection.execute(named)]
    rows = [{"job_id": job_id, "bundle_id": code} for job_id, code in pairs if code in known]
    op.bulk_insert(uses, rows)
