"""What can go wrong in a rank, and the one boundary at which foreign exceptions become ours.

    WorkerError
    |-- TaskError               user: model or task code raised, or does not fit the data
    |-- DataError               user: the data cannot be trained on
    |   `-- BadDataError            user: more samples cannot be read than data.max_bad allows
    |-- LoaderError             system, retryable: the processes that load the data died, or a batch did not come in time
    |-- DivergedError           user: the loss is NaN or infinite
    |-- MemoryExhaustedError    user: the job does not fit into memory
    |-- CheckpointError         system: a checkpoint could not be read or written
    |   |-- CheckpointCorruptError      data: a file is missing or its digest is wrong
    |   |-- CheckpointMismatchError     user: made by another architecture
    |   |-- CheckpointWriteError        system, retryable: disk full, fsync failed
    |   `-- StaleFenceError             system: a later attempt has written already; this one must end
    |-- ExportError             user: the model cannot be brought into a format, or a package for it is missing
    |-- StorageNotSharedError   user: this node does not see the controller's storage
    |-- GangStartError          system, retryable: the ranks did not meet
    |-- RankLostError           system, retryable: the state of training is lost with the ranks that had it
    `-- PeerLostError           system, retryable: a collective failed because another rank went away

Owns the mapping to `JobFailure`. Loads no torch: torch's own exceptions are known by the names of their classes.
"""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from worker.contract.failure import FailureCode, JobFailure


class WorkerError(Exception):
    """A failure with a code. `is_retryable`: whether the same job may do better when tried again."""

    code: ClassVar[FailureCode] = FailureCode.SYSTEM_ERROR
    is_retryable: ClassVar[bool] = False


class TaskError(WorkerError):
    """The model or the task raised, or does not fit the data."""

    code = FailureCode.TASK_ERROR


class DataError(WorkerError):
    """The data cannot be trained on."""

    code = FailureCode.DATA_ERROR


class BadDataError(DataError):
    """More samples cannot be read than data.max_bad allows."""

    code = FailureCode.BAD_DATA


class LoaderError(WorkerError):
    """The processes that load the data died again and again, or a batch did not come in time."""

    code = FailureCode.LOADER_FAILED
    is_retryable = True


class DivergedError(WorkerError):
    """The loss is NaN or infinite."""

    code = FailureCode.DIVERGED


class MemoryExhaustedError(WorkerError):
    """The job does not fit into the memory of the device or of the machine."""

    code = FailureCode.OUT_OF_MEMORY


class CheckpointError(WorkerError):
    """A checkpoint could not be read or written."""

    code = FailureCode.CHECKPOINT_ERROR


class CheckpointCorruptError(CheckpointError):
    """A file of a checkpoint is missing, or is not what the manifest says."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint was made by another architecture."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written whole; nothing was published."""

    is_retryable = True


class StaleFenceError(CheckpointError):
    """A later attempt of the same job has published a checkpoint: this one is a leftover and must not write."""


class ExportError(WorkerError):
    """The model cannot be brought into a format, or what was written does not compute the same."""

    code = FailureCode.EXPORT_FAILED


class StorageNotSharedError(WorkerError):
    """This rank does not see the storage directory that the controller sees."""

    code = FailureCode.STORAGE_NOT_SHARED


class GangStartError(WorkerError):
    """The ranks did not meet in time."""

    code = FailureCode.GANG_START_FAILED
    is_retryable = True


class PeerLostError(WorkerError):
    """A collective failed because another rank went away: a consequence, never a cause."""

    code = FailureCode.PEER_LOST
    is_retryable = True


class RankLostError(WorkerError):
    """The ranks that held the state of training are gone: only a checkpoint helps."""

    code = FailureCode.RANK_LOST
    is_retryable = True


# Installed packages and the standard library. Where this package is installed too, only the user's own code is left.
_LIBRARY_PATHS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {"<frozen "})
# torch.OutOfMemoryError, and what the CPU allocator says in a plain RuntimeError.
_OUT_OF_MEMORY_NAMES = {"MemoryError", "OutOfMemoryError"}
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "CUDA out of memory")
# torch.distributed's own errors; gloo throws plain RuntimeErrors that begin with the path of its source file.
_PEER_LOST_NAMES = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError", "DistQueueEmptyError"}
_PEER_LOST_TEXTS = ("/gloo/", "Connection closed by peer", "Connection reset by peer")


def classify(error: BaseException, fallback: type[WorkerError] = WorkerError) -> WorkerError:
    """Return the WorkerError that stands for any exception.

    Args:
        error: what was raised; a WorkerError is returned as it is.
        fallback: whose fault it is when nothing else is known.
    """
    if isinstance(error, WorkerError):
        return error
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if names & _PEER_LOST_NAMES or any(part in text for part in _PEER_LOST_TEXTS):
        return PeerLostError(f"a collective failed because another rank went away or did not answer: {_first_line(text)}")
    if names & _OUT_OF_MEMORY_NAMES or any(part in text for part in _OUT_OF_MEMORY_TEXTS):
        return MemoryExhaustedError(
            f"out of memory: {_first_line(text) or 'an allocation failed'}; use a smaller batch_size or more workers"
        )
    return fallback(describe(error))


@contextmanager
def blame(fallback: type[WorkerError]) -> Iterator[None]:
    """Map what is raised inside to a WorkerError, to `fallback` where the exception does not tell more itself."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        raise classify(error, fallback) from error


def describe(error: BaseException) -> str:
    """Return 'file:line in function: message' of the innermost frame that is no library's: what a person needs to find the fault."""
    message = f"{type(error).__name__}: {_first_line(str(error))}"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return message
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARY_PATHS)]
    last = (own or frames)[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno} in {last.name}: {message}"


def to_failure(error: BaseException, rank: int) -> JobFailure:
    """Return any exception of a rank as data for the controller."""
    known = classify(error)
    return JobFailure(code=known.code, message=str(known), rank=rank, retryable=known.is_retryable)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
