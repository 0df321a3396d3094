"""Conversion to SyncBatchNorm and back: what is kept, what is shared, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncbn import ConversionError, SyncBatchNorm, build_norm, convert_sync_batchnorm, revert_sync_batchnorm


class Net(nn.Module):
    """One norm in two places, one inside a container, and a second name for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.first = nn.BatchNorm2d(4, eps=0.1, momentum=0.3)
        self.again = self.first
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), self.first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use every one of them."""
        return self.block(self.again(self.first(self.conv(x))))


class WithRelu(nn.BatchNorm2d):
    """Does more than its base class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize and rectify."""
        return super().forward(x).relu()


class Renamed(nn.BatchNorm2d):
    """Does what its base class does, with a constructor of its own."""

    def __init__(self) -> None:
        super().__init__(4)


def test_shared_modules_stay_shared() -> None:
    """A layer with three names is converted once, and all names mean the new layer; reverting goes the same way."""
    net = Net()
    wanted = net.eval()(torch.ones(2, 2, 3, 3))
    converted = convert_sync_batchnorm(net)
    assert converted is net
    assert isinstance(net.first, SyncBatchNorm)
    assert net.first is net.again is net.block[2]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    assert torch.equal(net(torch.ones(2, 2, 3, 3)), wanted)
    revert_sync_batchnorm(net)
    assert type(net.first) is nn.BatchNorm2d
    assert net.first is net.again is net.block[2]
    assert torch.equal(net(torch.ones(2, 2, 3, 3)), wanted)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, Renamed])
def test_everything_is_kept_and_the_class_comes_back(kind) -> None:
    """Parameters and buffers are the same objects; flags, hooks and modes are kept; revert gives the original class."""
    calls: list[str] = []
    old = kind() if kind is Renamed else kind(4, eps=0.2, momentum=None)
    old.weight.requires_grad_(requires_grad=False)
    old.register_forward_hook(lambda *_: calls.append("hook"))
    handle = old.register_forward_hook(lambda *_: calls.append("removed"))
    old.eval()
    old.note = "mine"
    new = convert_sync_batchnorm(old)
    handle.remove()
    back = revert_sync_batchnorm(new)
    for layer, expected_type in ((new, SyncBatchNorm), (back, kind)):
        assert type(layer) is expected_type
        assert (layer.eps, layer.momentum, layer.training, layer.note) == (old.eps, old.momentum, False, "mine")
        assert layer.weight is old.weight
        assert layer.running_var is old.running_var
        assert not layer.weight.requires_grad
    new(torch.zeros(2, 4, 3))
    assert calls == ["hook"]
    assert set(vars(back)) == set(vars(old))


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"dtype": torch.float64}])
def test_options_and_dtypes_are_kept(options) -> None:
    """A converted layer has the parameters and buffers that the old one had, no more."""
    old = nn.BatchNorm1d(3, **options)
    keys = {name: value.dtype for name, value in old.state_dict().items()}
    new = convert_sync_batchnorm(old)
    assert {name: value.dtype for name, value in new.state_dict().items()} == keys
    assert (new.affine, new.track_running_stats) == (old.affine, old.track_running_stats)


def test_the_process_group_is_given_and_kept() -> None:
    """The group goes to every layer; torch's own SyncBatchNorm keeps the one it has."""
    group = object()
    model = nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(3, process_group=group))
    converted = SyncBatchNorm.convert_sync_batchnorm(model, None)
    assert [layer.process_group for layer in converted] == [None, group]
    assert [layer.process_group for layer in convert_sync_batchnorm(converted, "other")] == ["other", "other"]


def test_built_layers_revert_to_something_that_works() -> None:
    """A layer that never was anything else reverts to a local batch norm for any number of dimensions."""
    plain = revert_sync_batchnorm(nn.Sequential(SyncBatchNorm(3), nn.SyncBatchNorm(3)))
    for layer in plain:
        assert not isinstance(layer, (SyncBatchNorm, nn.SyncBatchNorm))
        layer(torch.randn(2, 3))
        layer(torch.randn(2, 3, 4, 5))


def test_a_forward_of_its_own_is_refused_by_name() -> None:
    """Subclasses, patched and parametrized layers that do more than BatchNorm are named, and nothing is changed."""
    patched = nn.BatchNorm2d(4)
    patched.forward = lambda x: x
    parametrized = nn.BatchNorm1d(4)
    nn.utils.parametrize.register_parametrization(parametrized, "weight", nn.ReLU())
    for layer in (WithRelu(4), patched, parametrized):
        model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(layer))
        with pytest.raises(ConversionError, match=r"layer '1\.0' is a .*own forward would be lost"):
            convert_sync_batchnorm(model)
        assert type(model[0]) is nn.BatchNorm2d
    assert isinstance(convert_sync_batchnorm(nn.Sequential(Renamed()))[0], SyncBatchNorm)


@pytest.mark.parametrize("kind", ["ghost_bn", "batch_renorm", "switchable"])
def test_other_kinds_of_this_library_stay_what_they_are(kind) -> None:
    """Whoever chose one beside plain layers meant it: these are converted, it is not."""
    chosen = build_norm(kind, 4)
    model = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4), chosen))
    assert isinstance(model[0], SyncBatchNorm)
    assert model[1] is chosen
    assert type(revert_sync_batchnorm(model)[0]) is nn.BatchNorm2d
    assert model[1] is chosen


def test_lazy_layers_are_refused_until_they_know_their_channels() -> None:
    """A lazy layer converts after its first input and not before."""
    model = nn.Sequential(nn.LazyBatchNorm2d())
    with pytest.raises(ConversionError, match="layer '0' is a LazyBatchNorm2d that has not seen an input"):
        convert_sync_batchnorm(model)
    model(torch.randn(2, 3, 4, 4))
    assert convert_sync_batchnorm(model)[0].num_features == 3


def test_an_activation_cannot_be_reverted() -> None:
    """Reverting would drop the activation: refused, naming layer and activation."""
    with pytest.raises(ConversionError, match="layer '0' applies the activation 'relu'"):
        revert_sync_batchnorm(nn.Sequential(SyncBatchNorm(3, activation="relu")))


def test_torchs_bias_free_layers_are_kept() -> None:
    """A weight without a bias survives, as torch's newer constructors allow."""
    old = nn.BatchNorm1d(3)
    old.register_parameter("bias", None)
    x = torch.randn(5, 3)
    wanted = nn.BatchNorm1d(3)(x)
    assert torch.equal(convert_sync_batchnorm(old)(x), wanted)


def test_every_kind_of_hook_goes_along() -> None:
    """Hooks before and after forward, of backward and of the state dict run on the converted layer, and on the reverted one."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    calls: list[str] = []
    model[1].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[1].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[1].register_state_dict_post_hook(lambda *_: calls.append("state"))
    for change in (convert_sync_batchnorm, revert_sync_batchnorm):
        calls.clear()
        change(model)
        model(torch.randn(4, 2)).sum().backward()
        model.state_dict()
        assert calls == ["before", "backward", "state"]


def test_models_without_memory_can_be_converted() -> None:
    """On the meta device, as large models are built before they are filled; the device stays."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, dtype=torch.float16))
    layer = convert_sync_batchnorm(model)[1]
    assert {(t.device.type, t.dtype) for t in (layer.weight, layer.running_var)} == {("meta", torch.float16)}
