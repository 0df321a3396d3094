"""The tables, as SQLAlchemy Core sees them. The migrations create them; a test compares the two."""

from sqlalchemy import BigInteger, Column, Double, ForeignKey, ForeignKeyConstraint, Index, Integer, MetaData, Table, Text, UniqueConstraint

from service.store.columns import Instant, JsonText, Words

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _job_id() -> Column[str]:
    return Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False, server_default="default"),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Words, nullable=False),
    Column("labels", JsonText, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("progress", JsonText, nullable=False),
    Column("metrics", JsonText, nullable=False),
    Column("world_size", Integer, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("spec", JsonText, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("edition", Integer, nullable=False),
    Column("log_bytes", BigInteger, nullable=False, server_default="0"),
    Column("submitter", Text, nullable=False, server_default=""),
    Column("ran_us", BigInteger, nullable=False, server_default="0"),
    Column("running_since", Instant),
    Column("resize_to", Integer),
    Column("resize_why", Text),
    Index("ix_jobs_state_id", "state", "id"),
    Index("ix_jobs_project_id", "project", "id"),
)

# The order of the queue, in which a range of it is read without sorting.
Index("ix_jobs_queue", jobs.c.state, jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)

# What the spec says of it too: apart, so that the queue is read without the specs.
needs = Table(
    "needs",
    metadata,
    _job_id(),
    Column("min_workers", Integer, nullable=False),
    Column("max_workers", Integer, nullable=False),
    Column("cpus_per_worker", Double, nullable=False),
    Column("gpus_per_worker", Integer, nullable=False),
    Column("timeout_s", Double, nullable=False),
)

job_labels = Table(
    "job_labels",
    metadata,
    _job_id(),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index("ix_job_labels_key_value", "key", "value", "job_id"),
)

transitions = Table(
    "transitions",
    metadata,
    _job_id(),
    Column("number", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Words, nullable=False),
    Column("at", Instant, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    _job_id(),
    Column("number", Integer, primary_key=True),
    Column("fence", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("world_size", Integer, nullable=False),
)

events = Table(
    "events",
    metadata,
    _job_id(),
    Column("seq", BigInteger, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("type", Text, nullable=False),
    Column("attempt", Integer),
    Column("rank", Integer),
    Column("rank_seq", BigInteger),
    Column("data", JsonText, nullable=False),
    # Null rank_seq (the controller's own events) never collides: SQL holds nulls apart.
    UniqueConstraint("job_id", "attempt", "rank", "rank_seq", name="uq_events_rank_seq"),
    Index("ix_events_type", "job_id", "type", "seq"),
)

metric_points = Table(
    "metric_points",
    metadata,
    _job_id(),
    Column("name", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("value", Double, nullable=False),
)

metric_rolls = Table(
    "metric_rolls",
    metadata,
    _job_id(),
    Column("name", Text, primary_key=True),
    Column("level", Integer, primary_key=True),
    Column("bucket", BigInteger, primary_key=True),
    Column("low_step", BigInteger, nullable=False),
    Column("low", Double, nullable=False),
    Column("high_step", BigInteger, nullable=False),
    Column("high", Double, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _job_id(),
    Column("step", BigInteger, primary_key=True),
    Column("manifest", JsonText, nullable=False),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sha256", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("scopes", JsonText, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)

bundles = Table(
    "bundles",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("num_files", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("uploaded_at", Instant, nullable=False, server_default="0"),
    UniqueConstraint("project", "sha256", name="uq_bundles_project_sha256"),
)

# The spec says it too; here the database sees to it that no bundle goes while a job names it.
code_uses = Table("code_uses", metadata, _job_id(), Column("bundle_id", Text, ForeignKey("bundles.id"), nullable=False, index=True))

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("job_id", Text, nullable=False, index=True),
    Column("created_at", Instant, nullable=False),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("field", Text, nullable=False),
    Column("spec", JsonText, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("idempotency_key", Text),
    Column("fingerprint", Text),
    UniqueConstraint("project", "idempotency_key", name="uq_comparisons_idempotency_key"),
)

variants = Table(
    "variants",
    metadata,
    Column("comparison_id", Text, ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("value", JsonText, nullable=False),
    # No foreign key: a table still says of a deleted job that there was one.
    Column("job_id", Text, nullable=False),
)

norm_choices = Table("norm_choices", metadata, _job_id())

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False, index=True),
    Column("term", BigInteger, nullable=False),
    Column("expires_at", Instant, nullable=False),
)
