"""Tests of worker/models/external.py and of the conversion: models that were not built for this project."""

import sys

import pytest
import torch
from torch import nn

import syncbn
from tests.support import user_models
from worker.contract import NORMS
from worker.contract.spec import DataSpec, ModelSpec, NormSpec
from worker.data.registry import build_data
from worker.errors import TaskError
from worker.models.norms import inference_norm, training_norm
from worker.models.registry import build_model

DATA = build_data(DataSpec(name="synthetic"), 0).train
HERE = f"code:{user_models.__name__}"
SEGMENTS = build_data(DataSpec(name="synthetic", args={"task": "segmentation"}), 0).train


def _build(name, kind="sync_bn", *, is_training=True, data=DATA, task="classification", **args):
    spec = NormSpec(kind=kind, eps=1e-2, momentum=0.3)
    return build_model(ModelSpec(name=name, args=args), spec, (training_norm if is_training else inference_norm)(spec), data, 0, task=task)


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_layers_of_torch_become_the_asked_norm(kind):
    """A model of plain BatchNorm2d layers, as torchvision's are, is converted: initial weights and statistics stay."""
    model, plain = _build(f"{HERE}:plain", kind), _build(f"{HERE}:plain", kind, is_training=False)
    wanted = {"sync_bn": syncbn.SyncBatchNorm, "batch_norm": nn.BatchNorm2d}.get(kind) or type(syncbn.build_norm(kind, 4))

    assert [type(model[place]) for place in (1, 4)] == [wanted] * 2
    assert model[1].eps == 1e-2
    assert getattr(model[1], "momentum", 0.3) == 0.3
    assert torch.equal(getattr(model[4], "running_mean", torch.full((4,), 7.0)), torch.full((4,), 7.0))
    assert torch.equal(model[1].weight, torch.zeros(4))
    assert torch.equal(model[4].weight, torch.ones(4))
    if kind in {"sync_bn", "batch_norm", "ghost_bn", "batch_renorm", "frozen_bn"}:
        assert type(plain[1]) is nn.BatchNorm2d
    plain.load_state_dict(model.state_dict(), strict=True)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_a_model_that_takes_norm_is_given_it(kind):
    """`norm` builds each site; arguments of the spec come through."""
    model = _build(f"{HERE}:Branches", kind, width=6)

    assert isinstance(model.left[1], type(training_norm(NormSpec(kind=kind))(6)))
    assert model.head.in_features == 6


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("code:nowhere.models:build", {}, "there is no module nowhere.models; expected it in the job's code bundle"),
        (f"{HERE}:absent", {}, "tests.support.user_models has no absent; expected one of what it defines: "),
        (f"{HERE}:ANSWER", {}, "is int and cannot be called"),
        (f"{HERE}:plain", {"wdth": 3}, "cannot be called with num_classes, in_channels, wdth: got an unexpected keyword argument 'wdth'"),
        (f"{HERE}:broken", {}, "user_models.py:"),
        (f"{HERE}:broken", {}, "in broken: ValueError: no model for 10 classes"),
        (f"{HERE}:no_model", {}, "returned int; expected a torch.nn.Module"),
        ("timm:resnet18", {}, "needs timm, which cannot be imported here"),
    ],
)
def test_what_goes_wrong_is_said(name, args, said, monkeypatch):
    """A missing module, a missing name, arguments that do not fit, an exception in the user's own code: each in its own words."""
    if name.startswith("timm"):
        monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TaskError) as caught:
        _build(name, **args)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "data"),
    [
        ("torchvision:resnet18", "classification", DATA),
        ("torchvision:fcn_resnet50", "segmentation", SEGMENTS),
        ("timm:resnet18", "classification", DATA),
        ("transformers:resnet", "classification", DATA),
    ],
)
def test_models_of_libraries_give_logits(name, task, data):
    """Where the library is installed, its model has converted layers, the state of a plain one, and returns logits."""
    library = name.partition(":")[0]
    try:
        __import__(library)
    except Exception as error:  # noqa: BLE001  a library that fails at import in any way cannot be tested
        pytest.skip(f"{library} cannot be imported here: {error}")
    model = _build(name, task=task, data=data)

    assert any(isinstance(module, syncbn.SyncBatchNorm) for module in model.modules())
    _build(name, task=task, data=data, is_training=False).load_state_dict(model.state_dict(), strict=True)
    assert model.eval()(torch.randn(2, 3, 64, 64)).shape[:2] == (2, data.num_classes)
