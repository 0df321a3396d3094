"""Tests of worker/evaluation.py; sums over several ranks are in test_session.py."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.support.jobs import small_spec
from worker.data.registry import build_data
from worker.errors import DataError
from worker.evaluation import StoppedError, evaluate
from worker.meeting import host_store
from worker.models.norms import training_norm
from worker.models.registry import build_model
from worker.ranks import Ranks, join, leave
from worker.tasks.registry import build_task
from worker.training import Precision

SPEC = small_spec(precision="fp64")
DATA = build_data(SPEC.data, SPEC.seed)
TASK = build_task(SPEC.task, DATA.train)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """A group of one."""
    yield join(host_store("127.0.0.1"), 0, 1, torch.device("cpu"))
    leave()


def _evaluate(ranks, model, batch_size=64, stop=None, data=DATA.test):
    precision = Precision(SPEC, ranks.device)
    return evaluate(model, TASK, data, ranks, precision, batch_size=batch_size, stop=stop or threading.Event())


def _model():
    return build_model(SPEC.model, SPEC.norm, training_norm(SPEC.norm), DATA.train, 0).double()


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_means_over_every_sample_with_running_statistics(ranks, batch_size):
    """However the split is cut, the result is that of one pass over all of it in eval mode; the statistics stay as they are."""
    model = _model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = map(torch.from_numpy, DATA.test.batch(np.arange(DATA.test.num_samples), 0))
    with torch.no_grad():
        logits = model.eval()(x.double())
    model.train()

    found = _evaluate(ranks, model, batch_size)

    assert found["val/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), abs=1e-12)
    assert found["val/accuracy"] == (logits.argmax(1) == y).sum().item() / 359
    assert found["val/top5"] == (logits.topk(5).indices == y[:, None]).sum().item() / 359
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_stop_ends_it_at_once(ranks):
    """What was seen so far is worth nothing, so there is no result."""
    stop = threading.Event()
    stop.set()

    with pytest.raises(StoppedError):
        _evaluate(ranks, _model(), stop=stop)


def test_data_that_raises_is_the_datas_fault(ranks):
    """Also while evaluating, the message leads to the line."""

    class Broken:
        num_samples = 3

        def batch(self, indices, epoch):
            raise OSError("gone")

    with pytest.raises(DataError, match="in batch: OSError: gone"):
        _evaluate(ranks, _model(), data=Broken())
