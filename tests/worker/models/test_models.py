"""Tests of worker/models."""

import numpy as np
import pytest
import torch
from torch import nn

import syncbn
from worker.contract import MODELS, NORMS
from worker.contract.spec import DataSpec, ModelSpec, NormSpec
from worker.data.registry import build_data
from worker.models.norms import LOCAL, inference_norm, training_norm
from worker.models.registry import BUILDERS, build_model
from worker.models.resnet import ResNet18

DATA = build_data(DataSpec(name="synthetic"), 0).train


def _model(norm=None, seed=0, **args):
    spec = norm or NormSpec()
    return build_model(ModelSpec(name="resnet18", args=args), spec, training_norm(spec), DATA, seed)


def test_every_name_of_the_catalogue_can_be_built():
    """What the controller accepts, a rank can build; nothing else is there."""
    assert BUILDERS.keys() == MODELS.keys()
    assert LOCAL.keys() == NORMS.keys() <= set(syncbn.norm_kinds())


def test_names_and_shapes_are_those_of_torchvision():
    """A width of 64 and the imagenet stem give resnet18: 122 tensors, 11,689,512 parameters, the usual names."""
    model = ResNet18(3, 1000, norm=nn.BatchNorm2d, stem="imagenet")
    state = model.state_dict()

    assert len(state) == 122
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512
    assert list(state)[:6] == [
        "conv1.weight",
        *(f"bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    assert list(state)[-2:] == ["fc.weight", "fc.bias"]
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.1.bn2.running_var"].shape == (512,)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("kind", sorted(NORMS))
@pytest.mark.parametrize("placement", ["before_activation", "after_activation"])
def test_every_norm_in_either_place(kind, placement):
    """Twenty norm sites of the asked kind; training and inference models have the same state."""
    spec = NormSpec(kind=kind, placement=placement, eps=1e-3)
    model = _model(spec, width=4)
    plain = build_model(ModelSpec(name="resnet18", args={"width": 4}), spec, inference_norm(spec), DATA, 1)
    plain.load_state_dict(model.state_dict(), strict=True)
    sites = [module for name, module in plain.named_modules() if name.rpartition(".")[2] in {"bn1", "bn2"} or name.endswith("downsample.1")]

    assert len(sites) == 20
    assert {type(site) for site in sites} == {type(sites[0])}
    if kind in {"sync_bn", "batch_norm"}:
        assert type(sites[0]) is nn.BatchNorm2d
    assert model(torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32))).shape == (3, 10)


def test_the_place_of_the_norm_matters():
    """The first norm sees the convolution, or what the activation made of it."""
    seen = {}
    for placement in ("before_activation", "after_activation"):
        model = _model(NormSpec(placement=placement), width=4)
        model.bn1.register_forward_pre_hook(lambda _, inputs, placement=placement: seen.update({placement: inputs[0].min().item()}))
        model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))

    assert seen["before_activation"] < 0
    assert seen["after_activation"] == 0


def test_initialization_is_a_function_of_the_seed():
    """The state of the global generator neither matters nor changes."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _model(width=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = _model(width=4).state_dict(), _model(width=4, seed=1).state_dict()

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_momentum_and_eps_reach_the_layers():
    """None is the cumulative average."""
    layer = training_norm(NormSpec(momentum=None, eps=0.5))(3)

    assert (layer.momentum, layer.eps, type(layer)) == (None, 0.5, syncbn.SyncBatchNorm)
