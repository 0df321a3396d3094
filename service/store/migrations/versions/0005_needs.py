"""What each job asks of the cluster in a table of its own, and an index in the order of the queue.

A round of the scheduler reads thousands of queued jobs; reading their specs for it took ten times as long.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005_needs"
down_revision = "0004_log_quota"


def upgrade() -> None:
    """Make the table, fill it from the specs that are there, and replace the index."""
    needs = op.create_table(
        "needs",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("min_workers", sa.Integer, nullable=False),
        sa.Column("max_workers", sa.Integer, nullable=False),
        sa.Column("cpus_per_worker", sa.Double, nullable=False),
        sa.Column("gpus_per_worker", sa.Integer, nullable=False),
        sa.Column("timeout_s", sa.Double, nullable=False),
    )
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.text("SELECT id, spec FROM jobs")).all():
        document = json.loads(spec)
        resources = document["resources"]
        connection.execute(
            needs.insert().values(
                job_id=job_id,
                min_workers=resources["workers"],
                max_workers=resources["workers"],
                cpus_per_worker=resources["cpus_per_worker"],
                gpus_per_worker=resources["gpus_per_worker"],
                timeout_s=document["timeout_s"],
            )
        )
    op.create_index("ix_jobs_queue", "jobs", ["state", sa.text("priority DESC"), "created_at", "id"])
    op.drop_index("ix_jobs_state_priority", "jobs")
