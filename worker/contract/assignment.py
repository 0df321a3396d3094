"""What one rank is told when the gang is formed."""

from typing import Annotated

from pydantic import BeforeValidator

from worker.contract.frozen import Frozen
from worker.contract.spec import JobSpec


class Assignment(Frozen):
    """One rank's part in one attempt of one job."""

    job_id: str
    attempt: int
    fence: int
    """Grows with every attempt; everything a rank writes carries it, and a stale one is refused."""
    rank: int
    world_size: int
    spec: JobSpec
    storage: Annotated[str, BeforeValidator(str)]
    """Address of the storage: the same shared directory on every node and for the controller, or an object store. Holds no secret."""
    marker: str
    """Name in the storage that the controller wrote: proof that it is shared."""
    resume: str | None = None
    """`JOB_ID/STEP` of the checkpoint to start from: own (resume, whole training state) or foreign (initialize, model only)."""
    code_sha256: str | None = None
    """Digest, and so the name, of the uploaded code that the spec names."""
    store_host: str
    store_port: int
    """Where rank 0 serves the TCPStore at which the ranks meet."""
