"""What one rank is told when the gang is formed."""

from pathlib import Path

from worker.contract.frozen import Frozen
from worker.contract.spec import JobSpec


class CodeArchive(Frozen):
    """Uploaded code as it lies in the storage."""

    name: str
    """Under the storage root."""
    sha256: str
    """Of the archive, hexadecimal."""


class Assignment(Frozen):
    """One rank's part in one attempt of one job."""

    job_id: str
    attempt: int
    fence: int
    """Grows with every attempt; everything a rank writes carries it, and a stale one is refused."""
    rank: int
    world_size: int
    spec: JobSpec
    storage: Path
    """The storage root: the same shared directory on every node and for the controller."""
    marker: str
    """Name of a file under the storage root that the controller wrote: proof that the directory is shared."""
    resume: str | None = None
    """`JOB_ID/STEP` of the checkpoint to start from: own (resume, whole training state) or foreign (initialize, model only)."""
    code: CodeArchive | None = None
    """The uploaded code that the spec names."""
    store_host: str
    store_port: int
    """Where rank 0 serves the TCPStore at which the ranks meet."""
