"""Folding: the same outputs without norms, or a refusal that names the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import syncbn
from syncbn import ConversionError, SyncBatchNorm, build_norm, fold_batchnorm, folding_difference
from tests.syncbn.norms.kinds import NEEDED


def trained(layer: nn.Module) -> nn.Module:
    """Give every norm in a model statistics and an affine part worth folding."""
    torch.manual_seed(0)
    for norm in layer.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return layer.double().eval()


class Residual(nn.Module):
    """Norms that no Sequential shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), SyncBatchNorm(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A basic block."""
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()


FOLDABLE = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)), (2, 4, 9)),
    "grouped conv2d": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), SyncBatchNorm(6), nn.ReLU()), (2, 4, 9, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6, affine=False)), (2, 4, 4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "grouped transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6)), (2, 4, 5)),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)), (5, 4)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)), nn.Flatten()), (2, 4, 3, 3)),
    "residual": (lambda: nn.Sequential(Residual(), Residual()), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_folded_model_computes_the_same(name) -> None:
    """Outputs agree to rounding, no norm is left, and the original is unchanged."""
    build, shape = FOLDABLE[name]
    model = trained(build())
    x = torch.randn(shape, dtype=torch.float64)
    wanted = model(x)
    folded = fold_batchnorm(model)
    torch.testing.assert_close(folded(x), wanted, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(layer, _BatchNorm) for layer in folded.modules())
    assert torch.equal(model(x), wanted)


class Branch(nn.Module):
    """The convolution's output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use it before and after the norm."""
        y = self.conv(x)
        return self.bn(y) + y


class Scaled(nn.Conv1d):
    """A convolution that does something else with its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Ignore the scale of the weight."""
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), r"layer 1 \(BatchNorm1d\) cannot be folded"),
        (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 3, 1)), "it follows x|it follows input"),
        (Branch, "layer bn .* used elsewhere too"),
        (lambda: nn.Sequential(Scaled(3, 3, 1), nn.BatchNorm1d(3)), "may be more than these names say"),
        (lambda: nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3, track_running_stats=False)), "it has no running statistics"),
        (lambda: nn.Sequential(nn.Conv1d(3, 3, 1), SyncBatchNorm(3, activation="relu")), "activation 'relu'"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(3)), "3 channels and the layer before it 5 outputs"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(build, text) -> None:
    """The error names the layer and the reason."""
    with pytest.raises(ConversionError, match=text):
        fold_batchnorm(trained(build()))


@pytest.mark.parametrize("kind", ["batch_norm", "batch_renorm", "domain_bn", "frozen_bn", "ghost_bn", "sync_bn"])
@pytest.mark.parametrize("traced", [False, True])
def test_other_kinds_fold_too(kind, traced) -> None:
    """Whatever is an affine map in eval mode is folded, in a Sequential and along a traced graph."""
    norm = trained(build_norm(kind, 3, **NEEDED.get(kind, {})))
    for name, buffer in norm.named_buffers():
        if "tracked" not in name:
            buffer.uniform_(0.5, 2.0)
    model: nn.Module = nn.Sequential(nn.ConvTranspose1d(2, 3, 2), norm).double().eval()
    if traced:
        block = Residual().double().eval()
        block.bn1, block.conv1 = norm, nn.Conv2d(3, 3, 1).double()
        model = trained(block)
    folded = fold_batchnorm(model, torch.randn(2, 3, 4, 4).double() if traced else torch.randn(2, 2, 4).double())
    assert not [layer for layer in folded.modules() if hasattr(layer, "running_mean")]


@pytest.mark.parametrize("kind", ["switchable", "frozen_bn"])
def test_other_kinds_are_refused_by_name(kind) -> None:
    """What is no fixed map, or has nothing before it to be folded into."""
    before = nn.Conv1d(3, 3, 1) if kind == "switchable" else nn.ReLU()
    with pytest.raises(ConversionError, match=r"layer 1 \((SwitchableNorm|FrozenBatchNorm)\) cannot be folded"):
        fold_batchnorm(nn.Sequential(before, build_norm(kind, 3)).eval())


def test_the_difference_is_reported() -> None:
    """It is at the level of rounding for a fold, and large for another model."""
    model = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))).float()
    x = torch.randn(64, 4)
    folded = fold_batchnorm(model, x)
    assert 0 < folding_difference(model, folded, x) < 1e-5
    assert folding_difference(model, model, x) == 0
    with torch.no_grad():
        folded[3].bias += 1
    assert folding_difference(model, folded, x) > 1e-2
    assert folding_difference(model, nn.Linear(4, 3), x) == float("inf")


def test_a_fold_that_changes_the_output_is_refused() -> None:
    """A linear layer over a sequence: its outputs are not the norm's channels, which an example shows."""
    model = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    assert isinstance(fold_batchnorm(model, torch.randn(5, 4).double()), nn.Sequential)
    with pytest.raises(ConversionError, match=r"the folded Sequential differs by .*expected at most 1e-08 .*more than two dimensions"):
        fold_batchnorm(model, (torch.randn(5, 6, 4).double(),))


def test_training_mode_is_refused() -> None:
    """In training mode statistics are not fixed; in eval mode the same model folds."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConversionError, match="is in training mode"):
        fold_batchnorm(model)
    assert isinstance(fold_batchnorm(model.eval()), nn.Sequential)


def test_a_norm_in_training_mode_is_refused_by_name() -> None:
    """In a model in eval mode, too: it would take the batch's statistics, which a fold cannot."""
    model = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    model[1].train()
    with pytest.raises(ConversionError, match=r"layer 1 \(BatchNorm1d\) cannot be folded: it is in training mode"):
        fold_batchnorm(model)
    fold_batchnorm(model.eval())


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    """Branches on values end tracing; the error says so and names the layers left."""

    class Branching(Branch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Decide by value."""
            return self.bn(self.conv(x)) if x.sum() > 0 else x

    with pytest.raises(ConversionError, match="layers bn follow no layer in a Sequential and Branching cannot be traced"):
        fold_batchnorm(Branching().eval())


def test_a_converted_model_folds() -> None:
    """Training's layers go straight to inference."""
    model = trained(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
    x = torch.randn(1, 1, 2, 2).double()
    wanted = model(x)
    torch.testing.assert_close(fold_batchnorm(syncbn.convert_sync_batchnorm(model))(x), wanted)
