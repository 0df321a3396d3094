"""Models leave for inference: torch.export and ONNX of what was trained with SyncBatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from syncbn import convert_sync_batchnorm, fold_batchnorm, norm_kinds, revert_sync_batchnorm
from tests.syncbn.norms.kinds import Called

# Each tells of its own future inside torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Net(nn.Module):
    """A residual block and a head, converted and trained for a step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.ConvTranspose2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        y = self.bn1(self.conv1(x)).relu()
        return self.head((self.bn2(self.conv2(y)) + y).mean((2, 3)))


def trained() -> nn.Module:
    """Converted, with running statistics of its own."""
    torch.manual_seed(0)
    model = convert_sync_batchnorm(Net())
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6) * 2 + 1)
    return model.eval()


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "converted": lambda model: model,
    "reverted": revert_sync_batchnorm,
    "folded": fold_batchnorm,
}


@pytest.mark.parametrize("way", WAYS)
def test_an_exported_program_computes_the_same(way) -> None:
    """torch.export with any batch size gives the trained model's outputs."""
    model, x = trained(), torch.randn(4, 3, 6, 6)
    wanted, wanted_for_more = model(x), model(torch.cat((x, x + 1)))
    program = torch.export.export(WAYS[way](model), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(program.module()(torch.cat((x, x + 1))), wanted_for_more, rtol=1e-4, atol=1e-5)
    assert not any("all_reduce" in str(node.target) for node in program.graph.nodes)


def test_a_folded_program_has_no_normalization() -> None:
    """What is exported is convolutions and linear layers only; the reverted one has its batch norms."""
    x = torch.randn(4, 3, 6, 6)
    targets = {way: str([n.target for n in torch.export.export(WAYS[way](trained()), (x,)).graph.nodes]) for way in WAYS}
    assert "batch_norm" not in targets["folded"]
    assert "batch_norm" in targets["reverted"]


@pytest.mark.parametrize("kind", norm_kinds())
def test_every_kind_can_be_exported_for_evaluation(kind) -> None:
    """The kinds that have no plain counterpart leave as they are."""
    torch.manual_seed(0)
    layer, x = Called(kind, 6), torch.randn(4, 6, 5)
    layer(x * 2 + 1)
    program = torch.export.export(layer.eval(), (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("way", ["reverted", "folded"])
def test_an_onnx_file_computes_the_same(way, tmp_path: Path) -> None:
    """The ONNX reference evaluator gives the trained model's outputs."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model, x = trained(), torch.randn(4, 3, 6, 6)
    wanted = model(x).detach()
    torch.onnx.export(WAYS[way](model), (x,), tmp_path / "model.onnx", dynamo=True)
    evaluator = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx"))
    (found,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
