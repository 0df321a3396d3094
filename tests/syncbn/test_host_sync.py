"""No wait of the host for a device: seen without a GPU, by tensors that have a device and no values.

A fake CUDA tensor refuses to become a number, and the meta device has none; copies to the host are looked for among all operators.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from syncbn import SyncBatchNorm
from syncbn.kernels import stages_for
from syncbn.stages import Batch, EagerStages, Running


class HostCopies(TorchDispatchMode):
    """Raises where a tensor on a device is asked for its value, or copied to the host; counts collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        on_device = any(isinstance(a, Tensor) and a.device.type != "cpu" for a in args)
        to_host = isinstance(result, Tensor) and result.device.type == "cpu"
        if on_device and (to_host or "_local_scalar_dense" in name or "nonzero" in name):
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
    with HostCopies() as seen:
        layer(x, residual=x * 2).sum().backward()
    assert seen.collectives == [("all_reduce", 8 * 11), ("all_reduce", 8 * 10)]
    with HostCopies() as seen:
        layer.eval()(x).sum().backward()
    assert seen.collectives == []


@pytest.mark.parametrize("num_samples", [4, 0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_cuda_loops_never_wait(num_samples, masked, activation) -> None:
    """The four stages as they run on a GPU, with the running statistics, an activation and a residual."""
    with FakeTensorMode(), HostCopies(), torch.no_grad():
        x, residual, dy = (torch.randn(num_samples, 5, 3, device="cuda") for _ in range(3))
        mask = torch.ones(num_samples, 1, 3, device="cuda", dtype=torch.bool) if masked else None
        vectors = [torch.ones(5, device="cuda") for _ in range(4)]
        factor = torch.ones((), device="cuda", dtype=torch.float64)
        batch = Batch(x, mask, vectors[0], vectors[1], residual, 1e-5)
        running = Running(vectors[2], vectors[3], factor, unbiased=True)
        stages: Any = stages_for(batch, activation, running)
        kept, local = stages.local_sums(x, mask)
        y, saved = stages.normalize(batch, kept, local, running)
        kept, local, *_ = stages.gradient_sums(dy, saved)
        dx, dresidual = stages.input_gradient(kept, saved, local)
    assert isinstance(stages, EagerStages)
    assert {t.device.type for t in (y, dx, dresidual, local)} == {"cuda"}


def test_a_wait_would_be_seen() -> None:
    """A number asked for, and a copy to the host, are errors here."""
    with FakeTensorMode(), HostCopies():
        x = torch.randn(3, device="cuda")
        with pytest.raises((DataDependentOutputException, AssertionError)):
            bool(x.sum() > 0)
        with pytest.raises(AssertionError, match="waits for the device"):
            x.cpu()
