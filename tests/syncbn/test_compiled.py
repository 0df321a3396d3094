"""The compiled inner loops against float64, in both layouts; what they leave to the others; and what happens without a compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncbn import OptionError, SyncBatchNorm, inner_loops, native
from syncbn.function import Parameters, normalized
from syncbn.kernels import stages_for
from syncbn.loops import compiled, library
from syncbn.loops.compiled import CompiledStages
from syncbn.moments import unpack, variance
from syncbn.running import update_
from syncbn.stages import Batch, EagerStages, Running
from tests.syncbn.oracle import TOLERANCES, error


def laid_out(x: Tensor, innermost: str) -> Tensor:
    """A copy with space or channels innermost in memory."""
    return x.contiguous() if innermost == "space" else x.movedim(1, -1).contiguous().movedim(-1, 1)


def results(x: Tensor, given: dict[str, Any], kind: str, dy: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Everything that comes out of a forward and a backward."""
    tensors = {name: t.clone().requires_grad_() for name, t in {"x": x, **given}.items() if isinstance(t, Tensor)}
    leaf = tensors["x"]
    mean, var = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    running = Running(mean, var, 0.25, unbiased=True)
    layer = Parameters(tensors["weight"], tensors["bias"], 1e-3, None, None, given["activation"], tensors.get("residual"), running)
    with inner_loops(kind):
        y = normalized(leaf, mask, layer)
    assert y.stride() == x.stride()
    y.backward(dy)
    return {"y": y.detach(), "running_mean": mean, "running_var": var} | {name: t.grad for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("dtype", "innermost", "activation", "shapes"),
    [
        (torch.float32, "space", None, [(6, 5, 7), (32, 16, 14, 14), (3, 5, 2, 3, 4), (5, 5, 5)]),
        (torch.float32, "channels", None, [(12, 5, 4, 3), (32, 16, 14, 14), (700, 3), (8, 4, 2, 2)]),
        (torch.bfloat16, "space", "relu", [(3, 4, 130, 128)]),
        (torch.float32, "channels", "gelu", [(3, 128, 24, 24)]),
    ],
)
def test_equals_float64(dtype, innermost, activation, shapes) -> None:
    """Outputs, running statistics and all gradients, for sizes that the code was not compiled for."""
    torch.manual_seed(0)
    for shape in shapes:
        x, dy, residual = (laid_out(torch.randn(shape, dtype=torch.float64).mul(2).add(3).to(dtype), innermost) for _ in range(3))
        given = {"weight": torch.rand(shape[1]) + 0.5, "bias": torch.randn(shape[1]), "activation": activation}
        if activation is not None:
            given["residual"] = residual
        assert isinstance(stages_of(x, given), CompiledStages)
        actual = results(x, given, "compiled", dy)
        wide = {name: t.double() if isinstance(t, Tensor) else t for name, t in given.items()}
        wanted = results(x.double(), wide, "aten", dy.double())
        for name, value in wanted.items():
            is_batch = name in {"y", "x", "residual"}
            bound = TOLERANCES[dtype][0] if is_batch else 1e-5
            assert error(actual[name], value) <= bound, f"{name} for {shape}"
            assert actual[name].dtype == (dtype if is_batch else torch.float32)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "elu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("innermost", ["space", "channels"])
def test_activations_are_torchs(activation, dtype, innermost) -> None:
    """Far out on both sides, near 0, and in between: outputs and gradients are those of torch's operators, to the last digits."""
    x = torch.linspace(-30, 30, 4 * 3 * 501, dtype=torch.float64).view(4, 501, 3).movedim(2, 1)
    x, dy = (laid_out(t.to(dtype), innermost) for t in (x, torch.linspace(-1, 2, x.numel()).view(x.shape)))
    given = {"weight": x.std((0, 2)).float(), "bias": x.mean((0, 2)).float(), "activation": activation}
    actual, wanted = results(x, given, "compiled", dy), results(x.double(), given, "aten", dy.double())
    for name in ("y", "x"):
        assert error(actual[name], wanted[name]) <= (5e-6 if dtype == torch.float32 else 1e-12), name


def test_the_number_of_threads_changes_no_bit() -> None:
    """The cut into parts depends on the sizes alone."""
    before = torch.get_num_threads()
    for innermost in ("space", "channels"):
        x, dy = (laid_out(torch.randn(32, 48, 14, 14), innermost) for _ in range(2))
        given = {"weight": torch.rand(48), "bias": torch.randn(48), "activation": "silu"}
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(results(x, given, "compiled", dy))
        torch.set_num_threads(before)
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_building_is_done_once_and_by_whom_it_belongs_to(tmp_path, monkeypatch) -> None:
    """A second process finds what the first has built; a directory that others can write to is not trusted; a failure says why."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    path = library.passes_of("float")
    assert path.parent == tmp_path / "torch" / "syncbn"
    assert [*path.parent.iterdir()] == [path], "something is left"
    built_at = path.stat().st_mtime_ns
    assert library.passes_of("float") == path
    assert path.stat().st_mtime_ns == built_at
    path.parent.chmod(0o777)
    assert native._cache() != path.parent
    with pytest.raises(native.BuildError, match="NoSuchType"):
        library.passes_of("NoSuchType")


@pytest.mark.parametrize(
    ("innermost", "activation", "has_residual", "shapes"),
    [("space", None, True, [(6, 5, 7, 3), (3, 4, 64, 50)]), ("channels", "relu", False, [(6, 5, 7, 3), (32, 16, 14, 14)])],
)
def test_a_mask_leaves_out_whatever_is_outside(innermost, activation, has_residual, shapes) -> None:
    """Not a number included: results are float64's over what is inside, and 0 outside; a share that is all outside sends zeros."""
    torch.manual_seed(0)
    for shape in shapes:
        mask = torch.rand(shape[0], 1, *shape[2:]) < 0.6
        mask[0] = False  # where the shift is taken from
        x, dy, residual = (laid_out(torch.randn(shape).mul(2).add(3), innermost) for _ in range(3))
        x = laid_out(torch.where(mask, x, torch.nan), innermost)
        given = {"weight": torch.rand(shape[1]) + 0.5, "bias": torch.randn(shape[1]), "activation": activation}
        given |= {"residual": residual} if has_residual else {}
        assert isinstance(stages_of(x, given, mask), CompiledStages)
        actual = results(x, given, "compiled", dy, mask)
        wide = {name: t.double() if isinstance(t, Tensor) else t for name, t in given.items()}
        wanted = results(x.double(), wide, "aten", dy.double(), mask)
        for name, value in wanted.items():
            bound = TOLERANCES[x.dtype][0] if name in {"y", "x", "residual"} else 1e-5
            assert error(actual[name], value) <= bound, f"{name} for {shape}"
        for name in {"y", "x", "residual"} & actual.keys():
            assert not actual[name].masked_select(~mask).any()
        nowhere = torch.zeros_like(mask)
        assert not stages_of(x, given, nowhere).local_sums(x, nowhere)[1].any()


def stages_of(x: Tensor, given: dict[str, Any], mask: Tensor | None = None) -> Any:
    """The stages that are chosen for a batch."""
    batch = Batch(x, mask, given["weight"], given["bias"], given.get("residual"), 1e-3)
    running = Running(torch.zeros(x.shape[1]), torch.ones(x.shape[1]), 0.25, unbiased=True)
    with inner_loops("compiled"):
        return stages_for(batch, given["activation"], running)


@pytest.mark.parametrize("innermost", ["space", "channels"])
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (100, 0.1), (1000, 0.1), (0, 1e-6)])
def test_nothing_cancels(innermost, mean, std) -> None:
    """The variance of a million float32 values keeps six digits, whatever the mean."""
    x = laid_out((torch.randn(256, 4, 32, 32, dtype=torch.float64) * std + mean).float(), innermost)
    given = {"weight": torch.ones(4), "bias": torch.ones(4), "activation": None}
    found = unpack(stages_of(x, given).local_sums(x, None)[1])
    wanted = x.double()
    assert error(found.mean, wanted.mean((0, 2, 3)), scale=std) < 1e-7
    assert error(variance(found, unbiased=False), wanted.var((0, 2, 3), correction=0)) < 1e-6


@pytest.mark.parametrize("innermost", ["space", "channels"])
def test_a_misleading_block_is_found_out(innermost) -> None:
    """If the block that the shift is taken from is far from all others, the eager loops take the moments."""
    x = torch.randn(256, 4, 32, 32).mul(1e-2)
    x[0] += 1e4
    x = laid_out(x, innermost)
    found = unpack(stages_of(x, {"weight": torch.ones(4), "bias": torch.ones(4), "activation": None}).local_sums(x, None)[1])
    assert error(variance(found, unbiased=False), x.double().var((0, 2, 3), correction=0)) < 1e-6


def test_what_is_out_of_reach_takes_single_operators() -> None:
    """Empty batches, strided views and half precision; and everything where that is asked for."""
    x = torch.randn(8, 4, 6, 6)
    given = {"weight": torch.ones(4), "bias": torch.ones(4), "activation": None}
    assert isinstance(stages_of(x, given), CompiledStages)
    for other in (x[::2, :, 1:], x[:0], x.half()):
        assert isinstance(stages_of(other, given), EagerStages)
    with inner_loops("aten"):
        assert isinstance(stages_for(Batch(x, None, given["weight"], given["bias"], None, 1e-3), None, None), EagerStages)


def test_without_a_compiler_it_says_so_once_and_goes_on(monkeypatch) -> None:
    """No compiler is one warning; results are those of the eager loops."""
    monkeypatch.setattr(native, "_COMPILERS", ("no-such-compiler",))
    monkeypatch.setattr(compiled._Compiler, "works", True)
    monkeypatch.setattr(compiled._Compiler, "has_warned", False)
    library.library_for.cache_clear()
    x, given = torch.randn(4, 3, 5), {"weight": torch.ones(3), "bias": torch.zeros(3), "activation": None}
    assert isinstance(stages_for(Batch(x, None, None, None, None, 1e-3), None, None), EagerStages)  # unasked, it says nothing
    with pytest.warns(RuntimeWarning, match="no-such-compiler is in the PATH.*g\\+\\+") as warned:
        first = results(x, given, "compiled", x)
    second = results(x, given, "compiled", x)
    assert len(warned) == 1
    assert torch.equal(first["y"], second["y"])
    assert torch.equal(first["x"], results(x, given, "aten", x)["x"])


def test_the_switch_holds_for_its_block() -> None:
    """A block restores what was before; a call holds until the next; an unknown kind is refused."""
    x = torch.randn(4, 3, 5)
    batch = Batch(x, None, None, None, None, 1e-3)
    with inner_loops("compiled"), inner_loops("aten"):
        assert isinstance(stages_for(batch, None, None), EagerStages)
    with pytest.raises(OptionError, match="did you mean 'compiled'"):
        inner_loops("compile")


def test_a_result_may_be_changed_in_place() -> None:
    """As after torch's own batch norm, a ReLU in place may follow."""
    x = torch.randn(8, 4, 6, 6, requires_grad=True)
    given = (torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True), 1e-5, None)
    with inner_loops("compiled"):
        normalized(x, None, Parameters(*given, running=Running(torch.zeros(4), torch.ones(4), 0.1, unbiased=True))).relu_().sum().backward()
    assert x.grad is not None


def warmed(rank: int, world_size: int) -> bool:
    """Compile, or load what another process has compiled, while nobody waits in a collective."""
    x = torch.randn(2, 16, 8, 8)
    results(x, {"weight": torch.ones(16), "bias": torch.ones(16), "activation": None}, "compiled", x)
    return compiled._Compiler.works


def train(rank: int, world_size: int) -> list[float]:
    """A small network with compiled loops on uneven and empty shares, against one process and torch's layers over the whole batch."""
    torch.manual_seed(0)
    model = nn.Sequential(SyncBatchNorm(16), nn.Conv2d(16, 16, 1), SyncBatchNorm(16))
    whole = nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)).double()
    whole.load_state_dict(model.state_dict())
    x = torch.randn(6, 16, 8, 8)
    share = slice(0, 4) if rank == 0 else slice(4, 6) if rank == 1 else slice(6, 6)
    mine, wide = x[share].clone().requires_grad_(), x.double().requires_grad_()
    with inner_loops("compiled"):
        y = model(mine)
        y.square().mul(y).sum().backward()
    z = whole(wide)
    z.square().mul(z).sum().backward()
    state, wanted = model.state_dict(), whole.state_dict()
    errors = [error(state[name], wanted[name]) for name in state if "running" in name]
    return [error(y.detach(), z[share].detach()), error(mine.grad, wide.grad[share]), *errors]


@pytest.mark.ranks
def test_ranks_agree_with_one_process(ranks) -> None:
    """Across ranks, one of them empty."""
    assert all(ranks.run(3, warmed))
    assert max(max(errors) for errors in ranks.run(3, train)) < 1e-5


def penalty(kind: str) -> tuple[Tensor, Tensor]:
    """The gradient of |dL/dx|^2."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 4, 6, 6).requires_grad_(), torch.rand(4).requires_grad_()
    running = Running(torch.zeros(4), torch.ones(4), 0.1, unbiased=True)
    with inner_loops(kind):
        y = normalized(x, None, Parameters(weight, torch.zeros(4), 1e-5, None, running=running))
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        dx.square().sum().backward()
    return x.grad, weight.grad


def test_differentiates_twice() -> None:
    """Second derivatives are those of the eager loops."""
    for ours, theirs in zip(penalty("compiled"), penalty("aten"), strict=True):
        assert error(ours, theirs) < 1e-5


def test_the_update_of_running_statistics_is_one_formula() -> None:
    """What the kernel writes is what `running.update_` writes."""
    x = torch.randn(8, 4, 6, 6)
    mean, var = torch.zeros(4), torch.ones(4)
    given = {"weight": torch.ones(4), "bias": torch.zeros(4), "activation": None}
    total = stages_of(x, given).local_sums(x, None)[1]
    update_(mean, var, unpack(total), 0.25, unbiased=True)
    moved = results(x, given, "compiled", x)
    assert error(moved["running_mean"], mean) < 1e-6
    assert error(moved["running_var"], var) < 1e-6
