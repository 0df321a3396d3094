"""domain_bn: statistics of domains are kept apart, and chosen for a whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncbn import OptionError, SyncBatchNorm, build_norm, layer_statistics, recalibrate, use_domain
from tests.syncbn.norms.oracles import C, errors_against, filled, moved, per_channel, steps_on_ranks, whole_batch

DAY_NIGHT = {"domains": ("day", "night")}


def reference(x, p, state, training):
    """Plain batch normalization by the first domain's parameters."""
    weight, bias = per_channel(p["layers.day.weight"], x), per_channel(p["layers.day.bias"], x)
    dims = (0, *range(2, x.dim()))
    mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    if training:
        moved(state, x)
    else:
        mean, var = per_channel(state["running_mean"], x), per_channel(state["running_var"], x)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_chosen_domain_equals_the_formula_over_all_ranks(world_size, ranks) -> None:
    """Outputs, gradients (0 for the other domain), running statistics and evaluation, with an empty rank."""
    results = ranks.run(world_size, steps_on_ranks, "domain_bn", DAY_NIGHT, (3, 2))
    wanted = whole_batch(reference, filled(build_norm("domain_bn", C, **DAY_NIGHT)), 3 if world_size == 2 else 7, (3, 2))
    untouched = {"running_mean": torch.zeros(C).double(), "running_var": torch.ones(C).double()}
    for name, initial in untouched.items():
        wanted[f"layers.day.{name}"], wanted[f"layers.night.{name}"] = wanted.pop(name), initial
    errors = errors_against(wanted, results)
    assert max(errors.values()) < 1e-12, errors


def model() -> nn.Sequential:
    """Two domain layers."""
    return nn.Sequential(nn.Linear(4, 3), build_norm("domain_bn", 3, **DAY_NIGHT), nn.ReLU(), build_norm("domain_bn", 3, **DAY_NIGHT))


def test_each_domain_is_a_layer_of_its_own() -> None:
    """What is fed as one domain leaves the other as it was, and gives what a SyncBatchNorm of its own gives."""
    layer, alone = build_norm("domain_bn", 3, **DAY_NIGHT), SyncBatchNorm(3)
    x = torch.randn(8, 3)
    with use_domain(layer, "night"):
        assert torch.equal(layer(x), alone(x))
    layer(x + 7)
    statistics = layer_statistics(layer)
    assert torch.equal(statistics["layers.night"].running_mean, alone.running_mean)
    assert not torch.equal(statistics["layers.day"].running_mean, alone.running_mean)


def test_the_choice_ends_with_the_block() -> None:
    """Nested, and after an exception too, every layer has its former domain again."""
    net = model()
    net[3].domain = "night"
    with pytest.raises(ZeroDivisionError), use_domain(net, "night"):  # noqa: PT012  what happens inside is the point
        assert net[1].domain == "night"
        with use_domain(net, "day"):
            assert [net[1].domain, net[3].domain] == ["day", "day"]
        assert net[1].domain == "night"
        raise ZeroDivisionError
    assert [net[1].domain, net[3].domain] == ["day", "night"]


def test_recalibrating_adapts_one_domain() -> None:
    """The chosen domain's statistics become those of the data; the other's stay."""
    layer = build_norm("domain_bn", 3, **DAY_NIGHT)
    x = torch.randn(16, 3) + 5
    with use_domain(layer, "night"):
        done = recalibrate(layer, [x])
    assert (done.layers, done.untouched) == (("layers.night",), ("layers.day",))
    torch.testing.assert_close(layer.layers["night"].running_mean, x.mean(0))


@pytest.mark.parametrize(
    ("build", "name", "text"),
    [
        (model, "nigth", "domain 'nigth' is unknown to layer '1': expected one of day, night; did you mean 'night'"),
        (lambda: nn.Linear(2, 2), "day", "Linear has no domain_bn layer"),
    ],
)
def test_an_unknown_domain_is_refused(build, name, text) -> None:
    """By name, before anything is changed; on a single layer too."""
    net = build()
    with pytest.raises(OptionError, match=text), use_domain(net, name):
        pass
    with pytest.raises(OptionError, match=r"domain 'nigth' is unknown: .*did you mean 'night'"):
        build_norm("domain_bn", 3, **DAY_NIGHT).domain = "nigth"
