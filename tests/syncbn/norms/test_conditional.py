"""conditional_bn: scale and shift by class or vector, statistics over all ranks."""

from __future__ import annotations

import pytest
import torch

from syncbn import OptionError, ShapeError, build_norm
from tests.syncbn.oracle import error

SIZES = (3, 0, 4)


def condition_of(kind: str) -> torch.Tensor:
    """Seven samples' conditions."""
    return torch.tensor([0, 2, 2, 1, 0, 2, 2]) if kind == "num_classes" else torch.arange(21).view(7, 3).double().sin()


def wanted(kind: str) -> dict[str, torch.Tensor]:
    """By the definition, float64, over the whole batch."""
    layer = filled(kind)
    affine = {name: p.detach().clone().requires_grad_() for name, p in layer.affine.named_parameters()}
    x, dy = data()
    x.requires_grad_()
    condition = condition_of(kind)
    table = affine["weight"][condition] if kind == "num_classes" else condition @ affine["weight"].T + affine["bias"]
    xhat = (x - x.mean((0, 2), keepdim=True)) / (x.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    y = xhat * table[:, :5, None] + table[:, 5:, None]
    y.backward(dy)
    running = 0.9 + 0.1 * x.detach().transpose(0, 1).flatten(1).var(1)
    return {"y": y.detach(), "dx": x.grad, "running_var": running} | {name: p.grad for name, p in affine.items()}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """The whole batch and its output gradient."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 5, 4, generator=generator).double() * 2 + 3, torch.randn(7, 5, 4, generator=generator).double()


def filled(kind: str) -> torch.nn.Module:
    """The layer, with parameters that depend on the condition."""
    layer = build_norm("conditional_bn", 5, dtype=torch.float64, **{kind: 3})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def step(rank: int, world_size: int, kind: str) -> dict[str, torch.Tensor]:
    """One training step on this rank's share."""
    layer = filled(kind)
    share = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1])) if world_size > 1 else slice(None)
    x, dy = (whole[share] for whole in data())
    x.requires_grad_()
    y = layer(x, condition_of(kind)[share])
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "running_var": layer.norm.running_var}
    return found | {name: p.grad for name, p in layer.affine.named_parameters()}


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("kind", ["num_classes", "condition_size"])
def test_equals_the_formula_over_all_ranks(kind, world_size, ranks) -> None:
    """Outputs, gradients of input and of the table, and running statistics, with an empty rank."""
    results = ranks.run(world_size, step, kind)
    for name, value in wanted(kind).items():
        together = torch.cat([r[name] for r in results]) if name in {"y", "dx"} else sum(r[name] for r in results)
        assert error(together / world_size if name == "running_var" else together, value) < 1e-12, name


@pytest.mark.parametrize("kind", ["num_classes", "condition_size"])
def test_at_first_the_condition_changes_nothing(kind) -> None:
    """Weight 1 and bias 0 for every condition: plain batch normalization."""
    x = torch.randn(7, 5, 4)
    layer = build_norm("conditional_bn", 5, **{kind: 3})
    condition = condition_of(kind)
    condition = condition.float() if condition.is_floating_point() else condition
    torch.testing.assert_close(layer(x, condition), build_norm("batch_norm", 5)(x))


def test_another_norm_can_be_scaled() -> None:
    """With instance normalization in place of batch normalization it is adaptive instance normalization."""
    x = torch.randn(7, 5, 4)
    layer = build_norm("conditional_bn", 5, num_classes=3, norm=build_norm("instance_norm", 5, affine=False))
    torch.testing.assert_close(layer(x, condition_of("num_classes")), build_norm("instance_norm", 5)(x))


@pytest.mark.parametrize(
    ("kind", "condition", "text"),
    [
        ("num_classes", torch.zeros(6, dtype=torch.long), r"condition of shape \(6,\) .*expected integer class indices of shape \(7,\)"),
        ("num_classes", torch.zeros(7), "dtype torch.float32 .*integer class indices"),
        ("condition_size", torch.zeros(7, 2), r"expected floating vectors of shape \(7, 3\)"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(kind, condition, text) -> None:
    """The error has its shape and what was expected."""
    with pytest.raises(ShapeError, match=text):
        build_norm("conditional_bn", 5, **{kind: 3})(torch.randn(7, 5, 4), condition)


@pytest.mark.parametrize("condition", [torch.tensor([2, 0, 1, 2]), None], ids=["conditional", "domain"])
def test_a_mask_leaves_out_whatever_is_outside(condition) -> None:
    """As the samples cut short one by one; 0, and no gradient, outside."""
    kind, options = ("domain_bn", {"domains": ("day", "night")}) if condition is None else ("conditional_bn", {"num_classes": 3})
    layer = build_norm(kind, 2, dtype=torch.float64, **options)
    x, mask = torch.randn(4, 2, 5, dtype=torch.float64), torch.arange(5) < torch.tensor([[3], [5], [1], [0]])
    x = torch.where(mask.unsqueeze(1), x, torch.nan).requires_grad_()
    y = layer(x, mask) if condition is None else layer(x, condition, mask)
    inside = x.detach().movedim(1, -1)[mask]
    wanted = (inside - inside.mean(0)) / (inside.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(y.detach().movedim(1, -1)[mask], wanted)
    y.square().sum().backward()
    for outside in (y.detach().movedim(1, -1)[~mask], x.grad.movedim(1, -1)[~mask]):
        assert not outside.any()


def test_a_norm_without_masks_is_named() -> None:
    """Instance normalization in its place takes none; without a mask it works."""
    layer = build_norm("conditional_bn", 2, num_classes=3, norm=build_norm("instance_norm", 2, affine=False))
    x, condition = torch.randn(1, 2, 5), torch.tensor([1])
    with pytest.raises(OptionError, match="norm InstanceNorm takes no mask: expected one that does, as sync_bn"):
        layer(x, condition, torch.ones(1, 5).bool())
    assert layer(x, condition).shape == x.shape
