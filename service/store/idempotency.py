"""Idempotency keys: which request already made which job. Written in the transaction that stores the job."""

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import bindparam, insert, select

from service.store.query import Command, Query
from service.store.records import IdempotencyClaim
from service.store.session import Write
from service.store.tables import idempotency_keys

_IS_MEANT: Final = (idempotency_keys.c.project == bindparam("project")) & (idempotency_keys.c.key == bindparam("key"))
_EARLIER: Final = Query(select(idempotency_keys.c.fingerprint, idempotency_keys.c.job_id).where(_IS_MEANT))
_INSERT: Final = Command(insert(idempotency_keys))


class KeyReusedError(ValueError):
    """The key was used before for a different request. The client's fault; a new key helps."""


async def earlier_job(write: Write, project: str, claim: IdempotencyClaim) -> str | None:
    """Return the job that this very request made before, or None where the key is new.

    Raises:
        KeyReusedError: the key was used for a different request.
    """
    found = await write.prepared.rows(_EARLIER, project=project, key=claim.key)
    if not found:
        return None
    fingerprint, job_id = found[0]
    if fingerprint != claim.fingerprint:
        raise KeyReusedError(claim.key)
    return str(job_id)


async def remember(write: Write, project: str, claim: IdempotencyClaim, job_id: str) -> None:
    """Bind the key to the job. It is forgotten when the job is deleted."""
    names = {"project": project, "key": claim.key, "fingerprint": claim.fingerprint}
    row = names | {"job_id": job_id, "created_at": datetime.now(UTC)}
    await write.prepared.run(_INSERT, [row])
