"""Why a job, an attempt or a rank ended badly, as data: errors cross processes as values, never as pickled exceptions."""

from enum import StrEnum

from worker.contract.frozen import Frozen


class FailureCode(StrEnum):
    """A machine-readable reason. It becomes the job's `reason`."""

    TASK_ERROR = "task_error"
    """The user's model, data or task raised."""
    DATA_ERROR = "data_error"
    """The data cannot be trained on."""
    BAD_DATA = "bad_data"
    """More samples cannot be read than data.max_bad allows."""
    LOADER_FAILED = "loader_failed"
    """The processes that load the data died again and again, or a batch did not come in time."""
    DIVERGED = "diverged"
    """The loss is NaN or infinite."""
    OUT_OF_MEMORY = "out_of_memory"
    CHECKPOINT_ERROR = "checkpoint_error"
    """A checkpoint could not be read or written."""
    EXPORT_FAILED = "export_failed"
    """The model cannot be brought into a format, or what was written does not compute the same."""
    STORAGE_NOT_SHARED = "storage_not_shared"
    """A rank does not see the storage directory that the controller sees."""
    PEER_LOST = "peer_lost"
    """A collective failed because another rank went away: a consequence, never a cause."""
    RANK_LOST = "rank_lost"
    """The process of a rank is gone."""
    GANG_START_FAILED = "gang_start_failed"
    """The ranks could not be started or did not meet."""
    TIMEOUT = "timeout"
    """The job ran longer than its timeout_s."""
    SYSTEM_ERROR = "system_error"
    """A fault of this software."""


class JobFailure(Frozen):
    """One failure: its code, one sentence for a person, the rank it happened on, and whether trying again may help."""

    code: FailureCode
    message: str
    rank: int | None = None
    retryable: bool = False
