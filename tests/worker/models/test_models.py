"""Tests of worker/models."""

import numpy as np
import pytest
import torch
from torch import nn

import syncbn
from syncbn.norms.ghost import GhostBatchNorm
from syncbn.norms.switchable import SwitchableNorm
from worker.contract import MODELS, NORMS
from worker.contract.spec import DataSpec, ModelSpec, NormSpec
from worker.data.registry import build_data
from worker.errors import TaskError
from worker.models.cspdarknet import CspDarknet
from worker.models.norms import inference_norm, training_norm
from worker.models.registry import BUILDERS, build_model
from worker.models.resnet import ResNet, ResNet18

DATA = build_data(DataSpec(name="synthetic"), 0).train


def _data(**args):
    return build_data(DataSpec(name="synthetic", args=args), 0).train


def _model(norm=None, seed=0, **args):
    spec = norm or NormSpec()
    return build_model(ModelSpec(name="resnet18", args=args), spec, training_norm(spec), DATA, seed)


def test_every_name_of_the_catalogue_can_be_built():
    """What the controller accepts, a rank can build; nothing else is there."""
    assert BUILDERS.keys() == MODELS.keys()
    assert syncbn.norm_kinds() == tuple(sorted({*NORMS, "conditional_bn", "domain_bn"}))  # no data has domains or conditions


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


def test_resnet_50_is_torchvisions():
    """A width of 64 gives resnet50: 320 tensors, 25,557,032 parameters."""
    model = ResNet(50, 3, 1000, norm=nn.BatchNorm2d, stem="imagenet")

    assert len(model.state_dict()) == 320
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert model.state_dict()["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)


BATCH_NORMS = {"sync_bn", "batch_norm", "ghost_bn", "batch_renorm", "frozen_bn"}


# Arguments of a small one, and how many norm sites it has.
SMALL = {
    "resnet18": ({"width": 4}, 20),
    "resnet34": ({"width": 2}, 36),
    "resnet50": ({"width": 2}, 53),
    "hybrid": ({"width": 4, "blocks": 1}, 11),
    "cspdarknet": ({"width": 2}, 33),
    "unet": ({"width": 2, "depth": 2}, 10),
    "unet in 3-D": ({"width": 2, "depth": 2}, 10),
}


@pytest.mark.parametrize("kind", sorted(NORMS))
@pytest.mark.parametrize("placement", ["before_activation", "after_activation"])
@pytest.mark.parametrize("name", SMALL)
def test_every_model_with_every_norm_in_either_place(name, placement, kind):
    """All sites are of the asked kind, all parameters learn, and the state loads into the same model of plain layers."""
    args, num_sites = SMALL[name]
    dimensions = 3 if name.endswith("3-D") else 2
    # Maps of one position have no variance of their own: instance_norm needs larger images.
    side = 64 if (name, kind) == ("cspdarknet", "instance_norm") else 32 if name in {"hybrid", "cspdarknet"} else 16
    data = _data(task="segmentation" if name.startswith("unet") else "classification", dimensions=dimensions, image_size=side)
    spec, model_spec = NormSpec(kind=kind, placement=placement, eps=1e-3), ModelSpec(name=name.split()[0], args=args)
    model = build_model(model_spec, spec, training_norm(spec), data, 0)
    plain = build_model(model_spec, spec, inference_norm(spec), data, 1)
    plain.load_state_dict(model.state_dict(), strict=True)

    for built, norm in ((model, training_norm(spec)), (plain, inference_norm(spec))):
        wanted = type(norm.in_dimensions(dimensions)(8))
        assert sum(type(module) is wanted for module in built.modules()) == num_sites
    if kind in BATCH_NORMS:
        assert any(type(module) is (nn.BatchNorm3d if dimensions == 3 else nn.BatchNorm2d) for module in plain.modules())
    x, y = map(torch.from_numpy, data.batch(np.arange(3), 0))
    outputs = model(x)
    assert outputs.shape == (3, data.num_classes, *y.shape[1:])
    torch.autograd.backward(outputs.square().sum())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert plain.eval()(x[:0]).shape == (0, *outputs.shape[1:])


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"unet"}))
def test_models_of_images_refuse_volumes(name):
    """The message says what the data is, before a convolution does."""
    with pytest.raises(TaskError, match=r"takes images \(C, H, W\); the data has samples of shape \(3, 8, 8, 8\)"):
        build_model(ModelSpec(name=name), NormSpec(), training_norm(NormSpec()), _data(dimensions=3, image_size=8), 0)


def test_a_detectors_neck_gets_three_maps():
    """Of strides 8, 16 and 32, each twice as wide as the one before."""
    model = CspDarknet(3, 10, norm=nn.BatchNorm2d, width=2)

    assert [tuple(level.shape) for level in model.features(torch.zeros(2, 3, 64, 96))] == [(2, 8, 8, 12), (2, 16, 4, 6), (2, 32, 2, 3)]


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
    for kind, built in (("sync_bn", syncbn.SyncBatchNorm), ("ghost_bn", GhostBatchNorm), ("switchable", SwitchableNorm)):
        layer = training_norm(NormSpec(kind=kind, momentum=None, eps=0.5))(3)

        assert (layer.momentum, layer.eps, type(layer)) == (None, 0.5, built)


def test_arguments_of_a_kind_reach_the_layers():
    """And the group, each kind that synchronizes; what is left out has its default."""
    group = object()
    ghost = training_norm(NormSpec(kind="ghost_bn", args={"virtual_batch_size": 4}), group)(8)
    renorm = training_norm(NormSpec(kind="batch_renorm", args={"r_max": 2.0, "start": 10}), group)(8)

    assert ghost.virtual_batch_size == 4
    assert (renorm.clipping.r_max, renorm.clipping.d_max, renorm.clipping.start) == (2.0, 5.0, 10)
    assert training_norm(NormSpec(kind="group_norm", args={"num_groups": 4}))(8).num_groups == 4
    assert renorm.process_group is training_norm(NormSpec(kind="switchable"), group)(8).process_group is group


def test_groups_that_do_not_divide_the_channels_are_the_users_fault():
    """Only the model knows its channels: the job fails at its start, and the message has the divisors."""
    with pytest.raises(TaskError, match=r"num_groups 3 does not divide num_features 4: expected one of \[1, 2, 4\]"):
        _model(NormSpec(kind="group_norm", args={"num_groups": 3}), width=4)
