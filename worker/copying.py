"""The copy of the state for a checkpoint, made while training goes on. Owns its memory, and the gate before whatever changes its sources.

Knows nothing of trainers or files. Which tensors may be copied late is `worker.state.present`'s business.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from worker.errors import CheckpointWriteError, WorkerError, describe

COPY_TIMEOUT_S = 120.0
"""How long somebody waits for a copy that somebody else makes."""

Tensors = Mapping[str, Mapping[str, Tensor]]
"""By kind and name."""
Copies = dict[str, dict[str, Tensor]]


class Buffers:
    """Memory for copies of the state, used again by every checkpoint of a job.

    Writing to memory that a process has for the first time takes 2.6 times as long as writing to memory that it had (docs/benchmarks.md).
    Copies from a GPU go to page-locked memory, all under way at once, beside what the GPU computes meanwhile.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    def copy(self, tensors: Tensors, written: torch.cuda.Event | None = None) -> Copies:
        """Return contiguous copies on the CPU. Those of the same kinds and names that were returned before change too.

        Args:
            tensors: what to copy.
            written: when the GPU has computed them; None where all are on the CPU.
        """
        copies = {kind: {name: self._buffer((kind, name), tensor) for name, tensor in some.items()} for kind, some in tensors.items()}
        if written is None:
            _copy(tensors, copies)
            return copies
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream):
                stream.wait_event(written)
                _copy(tensors, copies)
        finally:
            # Also where it failed half-way: what was begun still reads its source.
            stream.synchronize()
        return copies

    def _buffer(self, name: tuple[str, str], tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._kept[name] = kept
        return kept


class Copy:
    """The copy of the state after one step. It is made once, by whoever needs it first: the writer, or the training thread at the gate.

    The sources are read by whoever has the lock, and by nobody after `settle`: there is no moment at which they can be read and changed.
    """

    def __init__(self, step: int, make: Callable[[], Copies]) -> None:
        self._step = step
        self._lock = threading.Lock()
        self._make: Callable[[], Copies] | None = make
        """Has the sources; None when they are not to be read any more."""
        self._copies: Copies | None = None
        self._failure: str | None = None
        """What was raised, as text: an exception would hold the frames of the training thread, and with them its group."""

    def take(self) -> Copies:
        """Return the copies, and make them where they are not. Where that failed it is tried again, until `settle`.

        Raises:
            CheckpointWriteError: they could not be made.
        """
        with self._alone(CheckpointWriteError):
            if self._copies is None:
                self._try()
            if self._copies is None:
                raise CheckpointWriteError(
                    f"the state after step {self._step} was not copied for its checkpoint: {self._failure}; see that rank 0 has memory for"
                    " the state twice"
                )
            return self._copies

    def settle(self) -> None:
        """Return when the sources are read no more: with the copies made, or having failed, which `take` says.

        Raises:
            WorkerError: another thread still copies after COPY_TIMEOUT_S, and the sources must not be changed: a fault of this rank's
                machine, so that the rank is replaced where others hold the state.
        """
        with self._alone(WorkerError):
            if self._copies is None and self._failure is None:
                self._try()
            self._make = None

    def _try(self) -> None:
        if self._make is None:
            return
        try:
            self._copies, self._make = self._make(), None
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this checkpoint and nothing else; `take` says it
            self._failure = describe(error)

    @contextmanager
    def _alone(self, kind: type[WorkerError]) -> Iterator[None]:
        if not self._lock.acquire(timeout=COPY_TIMEOUT_S):
            raise kind(
                f"the state after step {self._step} is still being copied for its checkpoint after {COPY_TIMEOUT_S:g} s; expected a second"
                " or two; see whether rank 0's node swaps"
            )
        try:
            yield
        finally:
            self._lock.release()


class Copying:
    """The copies of one rank, one after the other, and the gate: whoever is about to change what may be under copy calls `settle` before.

    Who writes what, and why no copy can see half of it:

        trained parameters,     Trainer.step: the optimizer's step           calls `settle` before it (`before_update`)
        optimizer's tensors     Holding.join: state taken over from          calls `settle` before both
                                another rank, and DDP's broadcast of
                                parameters when ranks join
                                Holding: the checkpoint that it starts from  before there is any copy
        the average of these    Trainer.step: Average.follow                 after the optimizer's step
                                Holding.join, as above
        buffers, of the model   a forward, syncbn.accumulated_statistics     `state.present` copies them itself, while nobody trains
        and of the average      Average.follow
                                Holding.leave, which undoes half a step
                                Course._share_statistics: adopt_first
                                syncbn.recalibrate
        parameters that are     a model's own forward, if anybody            `state.present`, as buffers
        not trained
        anything                the forward of a user's own model (`code:`)  Course._save calls `settle` before it goes on; the forwards
                                                                             of the catalogue and of libraries write no trained parameter
        numbers                 the optimizer, the gradient scaler           `state.present` reads them itself

    Clipping changes gradients only. Not safe for several training threads.
    """

    def __init__(self, copy: Callable[[Tensors, torch.cuda.Event | None], Copies] | None = None) -> None:
        self._copy = copy or Buffers().copy
        self._latest: Copy | None = None

    def begin(self, step: int, tensors: Tensors) -> Copy:
        """Return a copy that is to be made, of the state after `step` steps. Nothing reads the copies of the one before any more."""
        self.settle()
        self._latest = Copy(step, partial(self._copy, tensors, _written(tensors)))
        return self._latest

    def settle(self) -> None:
        """Return when no copy reads its sources any more. Raises what `Copy.settle` does."""
        if self._latest is not None:
            self._latest.settle()
            self._latest = None


def _copy(tensors: Tensors, copies: Copies) -> None:
    for kind, some in tensors.items():
        for name, tensor in some.items():
            copies[kind][name].copy_(tensor.detach(), non_blocking=True)


def _written(tensors: Tensors) -> torch.cuda.Event | None:
    """Return the moment at which the GPU has done what it was told so far, None where nothing is on one."""
    if not any(tensor.is_cuda for some in tensors.values() for tensor in some.values()):
        return None
    now: torch.cuda.Event = torch.cuda.current_stream().record_event()
    return now
