"""Tests of worker/errors.py: the map from any exception to a failure is complete."""

import pytest
import torch
import torch.distributed as dist

from worker.contract import FailureCode
from worker.errors import DataError, DivergedError, PeerLostError, TaskError, WorkerError, blame, classify, to_failure

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:1234\nmore"


def _tree(kind=WorkerError):
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


@pytest.mark.parametrize(
    ("error", "code", "is_retryable"),
    [
        (RuntimeError(GLOO), FailureCode.PEER_LOST, True),
        (dist.DistBackendError("NCCL error"), FailureCode.PEER_LOST, True),
        (dist.DistNetworkError("socket closed"), FailureCode.PEER_LOST, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), FailureCode.OUT_OF_MEMORY, False),
        (MemoryError(), FailureCode.OUT_OF_MEMORY, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), FailureCode.OUT_OF_MEMORY, False),
        (DivergedError("the loss is nan"), FailureCode.DIVERGED, False),
        (KeyError("x"), FailureCode.SYSTEM_ERROR, False),
        (KeyboardInterrupt(), FailureCode.SYSTEM_ERROR, False),
    ],
)
def test_every_exception_becomes_a_failure(error, code, is_retryable):
    """Foreign exceptions are known by what they say; the rest is a fault of this software."""
    failure = to_failure(error, 3)

    assert (failure.code, failure.retryable, failure.rank) == (code, is_retryable, 3)
    assert failure.message
    assert "\n" not in failure.message


def test_every_class_of_the_tree_has_its_own_place():
    """Every class of the tree maps to its own code, with its message as it is."""
    for kind in _tree():
        failure = to_failure(kind("what, the value, expected, remedy"), 0)
        assert (failure.code, failure.message) == (kind.code, "what, the value, expected, remedy")
    named = {kind.__name__ for kind in _tree()}
    drawn = {
        word.strip("|`- ") for line in __import__("worker.errors").errors.__doc__.splitlines() for word in line.split() if "Error" in word
    }
    assert named == drawn & named, "the tree in the docstring is complete"


def test_code_of_the_user_is_blamed_by_file_line_and_function():
    """The message leads to the line that raised."""

    def forward():
        raise ValueError("expected 3 channels")

    with pytest.raises(TaskError, match=r"worker/test_errors\.py:\d+ in forward: ValueError: expected 3 channels"), blame(TaskError):
        forward()


def test_inner_blame_wins():
    """Data that raises inside a training step is the data's fault."""
    with pytest.raises(DataError), blame(TaskError), blame(DataError):
        raise OSError("unreadable")


def test_a_lost_peer_is_nobodys_fault():
    """A collective inside the model that fails is not the model's error."""
    with pytest.raises(PeerLostError, match="another rank went away"), blame(TaskError):
        raise RuntimeError(GLOO)


def test_classify_keeps_what_is_classified():
    """An error passes several boundaries unchanged."""
    error = DivergedError("x")

    assert classify(error, TaskError) is error
