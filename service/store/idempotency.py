"""Idempotency keys: which request already made which job. Written in the transaction that stores the job."""

from datetime import UTC, datetime

from sqlalchemy import insert, select

from service.store.records import IdempotencyClaim
from service.store.session import Write
from service.store.tables import idempotency_keys


class KeyReusedError(ValueError):
    """The key was used before for a different request. The client's fault; a new key helps."""


async def earlier_job(write: Write, project: str, claim: IdempotencyClaim) -> str | None:
    """Return the job that this very request made before, or None where the key is new.

    Raises:
        KeyReusedError: the key was used for a different request.
    """
    query = select(idempotency_keys).where(idempotency_keys.c.project == project, idempotency_keys.c.key == claim.key)
    row = (await write.connection.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    if row["fingerprint"] != claim.fingerprint:
        raise KeyReusedError(claim.key)
    return str(row["job_id"])


async def remember(write: Write, project: str, claim: IdempotencyClaim, job_id: str) -> None:
    """Bind the key to the job. It is forgotten when the job is deleted."""
    names = {"project": project, "key": claim.key, "fingerprint": claim.fingerprint}
    row = names | {"job_id": job_id, "created_at": datetime.now(UTC)}
    await write.connection.execute(insert(idempotency_keys), [row])
