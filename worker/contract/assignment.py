"""What one rank is told when the gang is formed, and again when its ranks are to meet anew."""

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
    generation: int = 1
    """Grows by 1 each time the ranks of an attempt are to meet anew; an earlier one is refused."""
    rank: int
    world_size: int
    spec: JobSpec
    storage: Annotated[str, BeforeValidator(str)]
    """Address of the storage: the same shared directory on every node and for the controller, or an object store. Holds no secret."""
    marker: str
    """Name in the storage that the controller wrote: proof that it is shared."""
    begins: bool = True
    """Nobody has trained in this attempt yet: a new process starts from `resume`. Else it takes over the state of a living rank."""
    resume: str | None = None
    """`JOB_ID/STEP` of the checkpoint to start from: own (resume, whole training state) or foreign (initialize, model only)."""
    code_sha256: str | None = None
    """Digest, and so the name, of the uploaded code that the spec names."""
    store_host: str
    store_port: int
    """Where one of the ranks serves the TCPStore at which all meet."""
    after_seq: int = 0
    """Number of the last event of this rank that is stored: a process that takes a dead one's place counts on from there."""
    reported: dict[str, int] | None = None
    """By metric, the last step that is stored: where rank 0 is another process than before, it says the rest again. None: nothing is."""
