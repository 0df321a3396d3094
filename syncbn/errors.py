"""Every error that the library raises, as one tree. Owns the classes; the messages are written where the values are known.

    SyncBNError
    ├── InputError (also ValueError)         the caller's tensors or options are wrong; trying again with the same ones fails again
    │   ├── ShapeError                       wrong rank, channel count or mask shape
    │   ├── BatchTooSmallError               statistics of fewer than two values per channel
    │   │   └── EmptyBatchError              of none at all, on any rank
    │   ├── OptionError                      an unknown kind or option, or a value out of range
    │   └── GroupError                       this process is not in the process group it was given
    ├── ConversionError (also TypeError)     a module cannot be converted, reverted or folded without changing what it computes
    ├── OutOfSyncError (also RuntimeError)   ranks hold different statistics that ought to be equal
    ├── OrderError (also RuntimeError)       ranks came to a reduction with different layers, or did not come
    ├── RecomputationError (also RuntimeError)  a checkpointed forward did not repeat its first pass
    └── RecalibrationError (also RuntimeError)  re-estimation failed on some rank; no statistics were changed on any

A message says what happened, the offending value, what was expected, and what to do.
"""


class SyncBNError(Exception):
    """Root of the tree: `except SyncBNError` catches whatever this library raises on purpose."""


class InputError(SyncBNError, ValueError):
    """The caller's tensors or options are wrong."""


class ShapeError(InputError):
    """A tensor has the wrong number of dimensions, channels or mask positions."""


class BatchTooSmallError(InputError):
    """Batch statistics need at least two values per channel over all ranks."""


class EmptyBatchError(BatchTooSmallError):
    """No rank has a single value to take statistics of."""


class OptionError(InputError):
    """A kind or an option is unknown, or its value is out of range."""


class GroupError(InputError):
    """This process is not a member of the process group it was asked to reduce over."""


class ConversionError(SyncBNError, TypeError):
    """A module cannot be converted, reverted or folded without changing what it computes."""


class OutOfSyncError(SyncBNError, RuntimeError):
    """Ranks hold different statistics where they ought to hold the same."""


class OrderError(SyncBNError, RuntimeError):
    """Ranks came to a reduction with different layers, or some did not come; nothing was reduced."""


class RecomputationError(SyncBNError, RuntimeError):
    """With activation checkpointing, a forward run again in backward matches no first pass of its layer."""


class RecalibrationError(SyncBNError, RuntimeError):
    """Re-estimating the statistics failed on at least one rank; none was changed."""
