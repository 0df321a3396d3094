"""Statistics from other frameworks: names, conventions, and errors by name. The other frameworks are written as their plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncbn import InputError, OptionError, ShapeError, SyncBatchNorm, build_norm, import_statistics

NAMES = {
    "keras": ("{}/gamma:0", "{}/beta:0", "{}/moving_mean:0", "{}/moving_variance:0"),
    "flax": ("params/{}/scale", "params/{}/bias", "batch_stats/{}/mean", "batch_stats/{}/var"),
    "paddle": ("{}.weight", "{}.bias", "{}._mean", "{}._variance"),
}
DEFAULTS = {"keras": (0.99, 1e-3), "flax": (0.99, 1e-5), "paddle": (0.9, 1e-5)}


def arrays(framework: str, *layers: str, C: int = 4) -> dict[str, torch.Tensor]:
    """A checkpoint of the other framework, with a convolution in it that is not ours to read."""
    torch.manual_seed(0)
    found = {name.format(layer).lstrip("/").replace("//", "/"): torch.rand(C) + 0.5 for layer in layers for name in NAMES[framework]}
    return found | {"conv/kernel": torch.randn(3, 3)}


class Theirs:
    """Batch normalization as the other frameworks do it: m is the weight of the past, the running variance is biased."""

    def __init__(self, framework: str, values: list[torch.Tensor]) -> None:
        self.weight, self.bias, self.mean, self.var = (v.double() for v in values)
        self.m, self.eps = DEFAULTS[framework]

    def train(self, x: torch.Tensor) -> torch.Tensor:
        """One training step."""
        mean, var = x.mean((0, 2)), x.var((0, 2), correction=0)
        self.mean, self.var = self.m * self.mean + (1 - self.m) * mean, self.m * self.var + (1 - self.m) * var
        return self.normalized(x, mean, var)

    def normalized(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        """The formula."""
        return (x - mean[:, None]) / (var[:, None] + self.eps).sqrt() * self.weight[:, None] + self.bias[:, None]


@pytest.mark.parametrize("framework", sorted(NAMES))
def test_an_imported_layer_goes_on_as_theirs(framework) -> None:
    """Evaluation, a training step, the running statistics after it, and evaluation again are the other framework's."""
    given = arrays(framework, "bn")
    layer = nn.Sequential(SyncBatchNorm(4, dtype=torch.float64))
    assert import_statistics(layer, given, framework, names={"0": "bn"}) == ("0",)
    theirs = Theirs(framework, [given[name.format("bn")] for name in NAMES[framework]])
    x = torch.randn(5, 4, 3).double() * 2 + 1
    for _ in range(2):
        torch.testing.assert_close(layer.eval()(x), theirs.normalized(x, theirs.mean, theirs.var))
        torch.testing.assert_close(layer.train()(x), theirs.train(x))
        torch.testing.assert_close(layer[0].running_mean, theirs.mean)
        torch.testing.assert_close(layer[0].running_var, theirs.var)


class Block(nn.Module):
    """Names as they are there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm1d(4), build_norm("frozen_bn", 4)


@pytest.mark.parametrize("framework", sorted(NAMES))
def test_a_whole_model_is_found_by_its_names(framework) -> None:
    """Nested layers, plain BatchNorm and frozen ones; parameters are written in place."""
    model = nn.ModuleDict({"stage": Block()})
    weight = model["stage"].bn1.weight
    given = arrays(framework, "stage/bn1" if framework != "paddle" else "stage.bn1", "stage/bn2" if framework != "paddle" else "stage.bn2")
    assert import_statistics(model, given, framework, momentum=0.7, eps=0.5) == ("stage.bn1", "stage.bn2")
    assert model["stage"].bn1.weight is weight
    assert model["stage"].bn1.momentum == pytest.approx(0.3)
    assert model["stage"].bn2.eps == 0.5
    separator = "." if framework == "paddle" else "/"
    for position, name in enumerate(("weight", "bias", "running_mean", "running_var")):
        their = NAMES[framework][position].format(f"stage{separator}bn2")
        assert torch.equal(getattr(model["stage"].bn2, name), given[their])


def test_a_single_layer_has_no_prefix() -> None:
    """Its arrays are named by their last name alone; other types of array and precision are taken, too."""
    layer = nn.BatchNorm1d(2)
    given = {"gamma": [1.0, 2.0], "beta": [0, 1], "moving_mean": torch.tensor([5.0, 6.0]).double(), "moving_variance": (3.0, 4.0)}
    assert import_statistics(layer, given, "keras") == ("",)
    assert layer.weight.tolist() == [1.0, 2.0]
    assert layer.running_mean.tolist() == [5.0, 6.0]
    assert isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize(
    ("change", "options", "error", "text"),
    [
        ({"bn/gamma": None}, {}, InputError, "1 arrays are missing: bn/gamma: expected .*ones or zeros"),
        ({"bn/moving_mean": None, "bn/beta": None}, {}, InputError, "2 arrays are missing: bn/beta, bn/moving_mean"),
        ({"bn/moving_variance": torch.ones(3)}, {}, ShapeError, r"1 arrays do not fit: bn/moving_variance of shape \(3,\) for \(4,\)"),
        (
            {},
            {"framework": "kears"},
            OptionError,
            "framework 'kears' is unknown: expected one of flax, keras, paddle; did you mean 'keras'",
        ),
        ({}, {"momentum": 99}, OptionError, "momentum 99 of keras is no weight of the past"),
        ({}, {"names": {"norn": "bn"}}, OptionError, "names has 'norn', which is no layer .*did you mean 'norm'"),
        ({}, {"names": {}}, InputError, "4 arrays are missing: norm/gamma, norm/beta.*there, layers are bn: give their names"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, options, error, text) -> None:
    """The message lists the arrays as they are named there; nothing is changed."""
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(4)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {name.removesuffix(":0"): value for name, value in arrays("keras", "bn").items()} | change
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(error, match=text):
        import_statistics(model, given, **({"framework": "keras", "names": {"norm": "bn"}} | options))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model["norm"].momentum == 0.1


def test_a_weight_without_a_place_is_refused() -> None:
    """A layer without affine part would drop it silently."""
    with pytest.raises(InputError, match="gamma, beta have no place: expected layers with affine=True"):
        import_statistics(nn.BatchNorm1d(4, affine=False), {name.rsplit("/")[-1]: v for name, v in arrays("keras", "bn").items()}, "keras")
