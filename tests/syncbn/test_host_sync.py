"""No wait of the host for a device, seen without a GPU: nothing asks a tensor for its value or copies it to the host.

The layer runs on the meta device, whose tensors have no values. The operators of the CUDA loops, some of which that device lacks, run on
the CPU, and are looked through for those that would wait.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from syncbn import SyncBatchNorm
from syncbn.loops import cpu, cuda
from syncbn.stages import Batch, EagerStages, Running


class NoWaiting(TorchDispatchMode):
    """Raises where a tensor is asked for its value, or copied from a device to the host; records collectives with their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        from_device = any(isinstance(a, Tensor) and a.device.type != "cpu" for a in args)
        is_copy = from_device and isinstance(result, Tensor) and result.device.type == "cpu"
        if is_copy or any(waiting in name for waiting in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")):
            raise AssertionError(f"{name} waits for the device")
        if "c10d" in name and "wait" not in name:
            self.collectives.append((name.split("::")[1].partition(".")[0], args[0].numel() * args[0].element_size()))
        return result


@pytest.fixture
def many_ranks(request) -> Any:
    """A process group of as many ranks as asked for that are not there: its collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("many_ranks", [2, 8, 1024], indirect=True)
@pytest.mark.parametrize("num_samples", [4, 0])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"activation": "silu"}], ids=str)
def test_a_layer_never_waits_and_sends_once_each_way(many_ranks, num_samples, options) -> None:
    """Training and evaluation, empty or not, with as many bytes for 2 ranks as for 1024: 8 (2C + 1) and 8 (2C)."""
    layer = SyncBatchNorm(5, device="meta", **options)
    x = torch.empty(num_samples, 5, 3, device="meta", requires_grad=True)
    with NoWaiting() as seen:
        layer(x, residual=x * 2).sum().backward()
    assert seen.collectives == [("all_reduce", 8 * 11), ("all_reduce", 8 * 10)]
    with NoWaiting() as seen:
        layer.eval()(x).sum().backward()
    assert seen.collectives == []


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_cuda_loops_never_wait(masked, activation) -> None:
    """The four stages of a GPU, with running statistics, an activation and a residual."""
    x, residual, dy = (torch.randn(4, 5, 3) for _ in range(3))
    mask = torch.ones(4, 1, 3, dtype=torch.bool) if masked else None
    vectors = [torch.ones(5) for _ in range(4)]
    running = Running(vectors[2], vectors[3], torch.ones((), dtype=torch.float64), unbiased=True)
    stages = EagerStages(cuda, activation)
    with NoWaiting(), torch.no_grad():
        kept, local = stages.local_sums(x, mask)
        _, saved = stages.normalize(Batch(x, mask, vectors[0], vectors[1], residual, 1e-5), kept, local, running)
        kept, local, *_ = stages.gradient_sums(dy, saved)
        stages.input_gradient(kept, saved, local)


def test_a_wait_would_be_seen() -> None:
    """The loops of the CPU, which may look at values, are caught; so is a copy to the host."""
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        cpu.centre(torch.randn(4, 5, 3), None)
    with NoWaiting(), pytest.raises((AssertionError, NotImplementedError)):
        torch.empty(3, device="meta").cpu()
