"""Backward fills its waiting with the weights' gradients of convolutions, and nothing comes out otherwise than without."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncbn import SyncBatchNorm, collectives, overlap, overlap_weight_gradients
from syncbn.errors import EmptyBatchError


class Branches(nn.Module):
    """Convolutions of all kinds around synchronized layers, in two branches that meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = SyncBatchNorm(8)
        self.a = nn.Conv2d(8, 8, 3, padding="same")
        self.bn_a = SyncBatchNorm(8, activation="relu")
        self.b = nn.Conv2d(8, 8, 1, groups=2)
        self.bn_b = SyncBatchNorm(8)
        self.c = nn.Conv2d(8, 4, 3, stride=2, padding=1, padding_mode="circular")
        self.d = nn.Conv2d(4, 4, 3, dilation=2)
        self.bn_d = SyncBatchNorm(4)

    def forward(self, x: Tensor, reentrant: bool | None = None) -> Tensor:
        """Both branches, checkpointed or (None) not."""

        def middle(h: Tensor) -> Tensor:
            return torch.relu_(self.bn_a(self.a(h)) + self.bn_b(self.b(h)))

        h = torch.relu_(self.bn(self.stem(x)))
        h = middle(h) if reentrant is None else checkpoint(middle, h, use_reentrant=reentrant)
        return self.bn_d(self.d(self.c(h)))


def trained(rank: int, world_size: int, is_overlapped: bool, variant: str) -> list[Tensor]:
    """Two steps: everything that comes out."""
    torch.manual_seed(0)
    net = Branches()
    if is_overlapped:
        overlap_weight_gradients(net)
    out = []
    for step in range(2):
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = torch.randn((5, 2, 0)[rank], 3, 12, 12, generator=generator).requires_grad_(variant != "input without gradient")
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "autocast"):
            y = net(x, {"checkpoint": False, "reentrant checkpoint": True}.get(variant))
        net.zero_grad()
        if variant == "penalty":
            (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
            (y.square().sum() + dx.square().sum()).backward()
        elif variant == "twice":
            y.square().sum().backward(retain_graph=True)
            y.sum().backward()
        else:
            y.square().sum().backward()
        out += [y.detach(), *(p.grad.clone() for p in net.parameters()), *([] if x.grad is None else [x.grad])]
    return [*out, *(b.clone() for b in net.buffers())]


VARIANTS = ["plain", "input without gradient", "autocast", "penalty", "twice", "checkpoint", "reentrant checkpoint"]


@pytest.mark.ranks
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_comes_out_otherwise(ranks, variant) -> None:
    """Outputs, gradients and statistics are equal in every bit, on uneven and empty ranks."""
    for wanted, found in zip(*(ranks.run(3, trained, is_overlapped, variant) for is_overlapped in (False, True)), strict=True):
        assert len(wanted) == len(found)
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def order(rank: int, world_size: int, is_overlapped: bool) -> list[str]:
    """What a backward does, in its order."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), SyncBatchNorm(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), SyncBatchNorm(5))
    if is_overlapped:
        overlap_weight_gradients(net)
    seen: list[str] = []
    start, gradients = collectives._start, overlap._gradients

    def starting(vector: Tensor, group: Any) -> Callable[[], Tensor]:
        name = f"{vector.numel() // 2} channels"
        seen.append(f"send sums of {name}")
        wait = start(vector, group)
        return lambda: (seen.append(f"wait for sums of {name}"), wait())[1]

    def computing(dy: Tensor, x: Tensor, weight: Tensor, how: Any, wanted: list[bool]) -> tuple[Tensor | None, ...]:
        seen.append(f"{len(weight)} channels: {' and '.join(n for n, w in zip(('input', 'weight'), wanted, strict=False) if w)}")
        return gradients(dy, x, weight, how, wanted)

    y = net(torch.randn(2, 3, 8, 8, requires_grad=True))
    collectives._start, overlap._gradients = starting, computing
    try:
        y.square().sum().backward()
    finally:
        collectives._start, overlap._gradients = start, gradients
    return seen


@pytest.mark.ranks
def test_what_is_not_waited_for_is_computed_while_waiting(ranks) -> None:
    """The weight's gradient comes between sending the sums and waiting for them."""
    sums = ["send sums of 5 channels", "wait for sums of 5 channels", "send sums of 4 channels", "wait for sums of 4 channels"]
    assert ranks.run(2, order, False) == [sums] * 2
    wanted = [*sums[:2], "5 channels: input", sums[2], "5 channels: weight", sums[3], "4 channels: input", "4 channels: weight"]
    assert ranks.run(2, order, True) == [wanted] * 2


def branches(rank: int, world_size: int) -> list[str]:
    """The waits of two branches of one backward."""
    torch.manual_seed(0)
    wide, narrow = SyncBatchNorm(6), SyncBatchNorm(6)
    seen: list[str] = []
    x = torch.randn(4, 6, requires_grad=True)
    y = wide(x * 2) + narrow(x * 3)[:, :1]
    start = collectives._start

    def starting(vector: Tensor, group: Any) -> Callable[[], Tensor]:
        number = len(seen)
        seen.append(f"send {number}")
        wait = start(vector, group)
        return lambda: (seen.append(f"wait {number}"), wait())[1]

    collectives._start = starting
    try:
        y.sum().backward()
    finally:
        collectives._start = start
    return seen


@pytest.mark.ranks
def test_branches_wait_together_and_in_the_order_they_sent(ranks) -> None:
    """The second branch's sums travel with the first's."""
    assert ranks.run(2, branches) == [["send 0", "send 1", "wait 0", "wait 1"]] * 2


def test_few_are_put_off_at_once() -> None:
    """Without anybody to wait for, memory is not held to the end of the backward: all but four are computed on the way."""
    depth, seen = 12, []
    net = overlap_weight_gradients(nn.Sequential(*(nn.Conv1d(2, 2, 1) for _ in range(depth))))
    for number, layer in enumerate(net):
        layer.weight.register_hook(lambda _, number=number: seen.append(number))
    net(torch.randn(1, 2, 3, requires_grad=True)).sum().backward()
    assert seen[:-4] == list(reversed(range(depth - 4)))
    assert set(seen[-4:]) == set(range(depth - 4, depth))
    assert overlap._thread.num_deferred == 0


def test_a_backward_that_ends_in_the_middle_is_forgotten() -> None:
    """What it had put off does not count in the next one."""
    net = overlap_weight_gradients(nn.Sequential(nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)))
    for _ in range(2 * overlap.NUM_DEFERRED):
        x = torch.randn(1, 2, 3, requires_grad=True)
        h = net[0](x)
        h.register_hook(_interrupt)
        with pytest.raises(EmptyBatchError):
            net[1](h).sum().backward()
    overlap._enter_backward()
    assert overlap._may_defer()


def _interrupt(_: Tensor) -> None:
    raise EmptyBatchError("in the middle")


def test_gradients_arrive_as_ever() -> None:
    """Hooks on weights see the real gradients, `inputs` is respected, unused ones stay None."""
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1))
    taken = overlap_weight_gradients(copy.deepcopy(plain))
    x = torch.randn(2, 2, 5, 5)
    for net in (plain, taken):
        net.seen = []
        net[1].weight.register_hook(net.seen.append)
        net[1].weight.register_post_accumulate_grad_hook(lambda p, net=net: net.seen.append(p.grad.clone()))
        net(x.clone().requires_grad_()).square().sum().backward(inputs=[net[1].weight])
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, taken.seen, strict=True))
    assert taken[0].weight.grad is None


def test_a_device_without_autocast_is_one_like_others() -> None:
    """Shapes are found on the meta device, which autocast does not know."""
    net = overlap_weight_gradients(nn.Conv2d(1, 2, 3)).to("meta")
    assert net(torch.empty(2, 1, 5, 5, device="meta", requires_grad=True)).shape == (2, 2, 3, 3)


def test_only_the_class_changes() -> None:
    """Names, values and identity stay; copies and pickles work; classes with a forward of their own are left alone."""

    class Own(nn.Conv2d):
        """Somebody's."""

    net = nn.Sequential(nn.Conv2d(1, 2, 3), Own(2, 2, 1), nn.ConvTranspose2d(2, 2, 2))
    before = list(net)
    assert overlap_weight_gradients(net) is net
    assert [type(layer) for layer in net] == [overlap.OverlappedConv2d, Own, nn.ConvTranspose2d]
    assert all(a is b for a, b in zip(before, net, strict=True))
    overlap_weight_gradients(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(nn.Sequential(net[0])))):
        assert type(twin[0]) is overlap.OverlappedConv2d
        assert torch.equal(twin[0].weight, net[0].weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch.func.jvp's own
@pytest.mark.parametrize("case", ["no grad", "frozen", "functorch", "forward mode", "unbatched", "mixed", "compiled", "empty"])
def test_torch_does_what_is_not_for_us(case) -> None:
    """Where there is no plain backward to order, the convolution is torch's, with its results and its errors."""
    plain = nn.Conv2d(2, 3, 3).requires_grad_(case != "frozen")
    taken = overlap_weight_gradients(copy.deepcopy(plain))
    x = torch.randn(2, 2, 5, 5)
    wanted, found = result(case, plain, x), result(case, taken, x)
    assert wanted == found if isinstance(wanted, str) else torch.equal(wanted, found)


def result(case: str, net: nn.Module, x: Tensor) -> Tensor | str:
    """What a convolution gives in a case."""
    leaf = {"unbatched": x[0], "mixed": x.double(), "empty": x[:0]}.get(case, x).clone().requires_grad_()
    if case == "mixed":
        with pytest.raises(RuntimeError) as failure:
            net(leaf)
        return str(failure.value)
    if case == "no grad":
        with torch.no_grad():
            return net(leaf)
    if case == "functorch":
        return torch.func.grad(lambda x: net(x).square().sum())(x)
    if case == "forward mode":
        return torch.func.jvp(net, (x,), (torch.ones_like(x),))[1]
    run = torch.compile(net, backend="aot_eager", fullgraph=True) if case == "compiled" else net
    return torch.autograd.grad(run(leaf).sum(), leaf if case == "frozen" else net.weight)[0]
