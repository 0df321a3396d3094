"""compare_statistics: the measures by their definitions, what cannot be measured, and the same differences as the service's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

import syncbn
from service.statistics import Vectors, _difference, _measures
from syncbn import InputError, LayerStatistics, compare_statistics, layer_statistics


def layer(mean: list[float], var: list[float], *, tracked: int | None = 7, eps: float = 1e-5) -> LayerStatistics:
    """A layer that has these statistics, float32 as in a model."""
    read = layer_statistics(nn.BatchNorm1d(len(mean), eps=eps))[""]
    return replace(read, name="bn", running_mean=torch.tensor(mean), running_var=torch.tensor(var), num_batches_tracked=tracked)


def compared(a: LayerStatistics, b: LayerStatistics) -> syncbn.LayerComparison:
    """The comparison of one layer with one."""
    return compare_statistics({"bn": a}, {"bn": b}).layers["bn"]


def test_every_measure_is_its_definition() -> None:
    """The shift in deviations of b, the extreme ratios, the divergence as torch.distributions has it, and both counts."""
    found = compared(layer([1.0, 2.0, -3.0], [4.0, 1.0, 0.25]), layer([0.0, 2.0, -2.0], [1.0, 2.0, 0.5], tracked=9))
    assert found.mean_shift == pytest.approx(1 / 0.50001**0.5)
    assert found.variance_ratio == pytest.approx((0.5, 4.0), rel=1e-4)
    a = Normal(torch.tensor([1.0, 2.0, -3.0]).double(), (torch.tensor([4.0, 1.0, 0.25]).double() + 1e-5).sqrt())
    b = Normal(torch.tensor([0.0, 2.0, -2.0]).double(), (torch.tensor([1.0, 2.0, 0.5]).double() + 1e-5).sqrt())
    assert found.distance == pytest.approx(float((kl_divergence(a, b) + kl_divergence(b, a)).mean()), rel=1e-6)
    assert (found.num_batches_tracked, found.problem) == ((7, 9), None)


vectors = st.integers(1, 5).flatmap(
    lambda size: st.tuples(
        *[st.lists(st.floats(-1e3, 1e3, width=32), min_size=size, max_size=size)] * 2,
        *[st.lists(st.floats(0, 1e4, width=32), min_size=size, max_size=size)] * 2,
        st.integers(-3, 3),
    )
)


@settings(max_examples=60, deadline=None)
@given(vectors)
def test_the_distance_is_symmetric_zero_for_equals_and_free_of_units(drawn) -> None:
    """Swapping changes nothing; a model is at 0 from itself; doubling a channel's unit in both models changes nothing."""
    mean_a, mean_b, var_a, var_b, power = drawn
    a, b = layer(mean_a, var_a, eps=0.0625), layer(mean_b, var_b, eps=0.0625)
    assert compared(a, b).distance == pytest.approx(compared(b, a).distance, rel=1e-9, abs=1e-12)
    itself = compared(a, a)
    assert (itself.mean_shift, itself.variance_ratio, itself.distance) == (0.0, (1.0, 1.0), 0.0)
    unit = 2.0**power
    rescaled = (replace(s, running_mean=s.running_mean * unit, running_var=s.running_var * unit**2, eps=0.0625 * unit**2) for s in (a, b))
    assert compared(*rescaled).distance == pytest.approx(compared(a, b).distance, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(vectors, st.sampled_from([None, float("nan"), float("inf")]), st.booleans())
def test_the_service_says_the_same(drawn, spoiled, has_vectors) -> None:
    """The same numbers under the same names as the answer to ?against=, which is computed without torch; None where one is not finite."""
    mean_a, mean_b, var_a, var_b, _ = drawn
    if spoiled is not None:
        mean_a = [spoiled, *mean_a[1:]]
    shown = compared(layer(mean_a, var_a), layer(mean_b, var_b)).to_dict(vectors=has_vectors)["difference"]
    wanted = _difference(Vectors(mean_a, var_a, 7), Vectors(mean_b, var_b, 7), has_vectors=has_vectors)
    assert shown.keys() == wanted.keys()
    for name, part in wanted.items():
        assert {key: value for key, value in shown[name].items() if key != "mean"} == {k: v for k, v in part.items() if k != "mean"}
        assert shown[name]["mean"] == (None if part["mean"] is None else pytest.approx(part["mean"], rel=1e-12, abs=1e-12))
    whole = compared(layer(mean_a, var_a), layer(mean_b, var_b)).to_dict()
    for name, value in _measures(Vectors(mean_a, var_a, 7), Vectors(mean_b, var_b, 7), 1e-5, 1e-5).items():
        assert whole[name] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12))


UNMEASURED = [
    (layer([0.0, 0.0], [1.0, 1.0]), "1 channels in a, 2 in b", False),
    (replace(layer([0.0], [1.0]), running_mean=None, running_var=None), "no running statistics in b", False),
    (layer([float("nan")], [1.0]), "1 of 1 channels of b are NaN or infinite", True),
    (layer([0.0], [float("inf")]), "1 of 1 channels of b are NaN or infinite", True),
    (layer([0.0], [-1.0]), "1 of 1 variances of b are negative", True),
    (layer([0.0], [0.0], eps=0.0), "variance 0 with eps 0 in b", True),
]


@pytest.mark.parametrize(("other", "problem", "has_difference"), UNMEASURED)
def test_what_cannot_be_measured_says_why(other, problem, has_difference) -> None:
    """No number that looks like one: None, and the reason; the difference where there is one, and JSON without NaN."""
    found = compared(layer([0.0], [1.0]), other)
    assert found.problem == problem
    assert (found.mean_shift, found.variance_ratio, found.distance) == (None, None, None)
    assert (found.running_mean is not None) == has_difference
    assert (found.to_dict()["difference"] is not None) == has_difference
    json.dumps(found.to_dict(vectors=True), allow_nan=False)


def model() -> nn.Sequential:
    """Two norms."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))


def test_models_are_compared_by_name_whatever_their_kinds() -> None:
    """A trained and converted model against the initial one; layers of only one of them are listed; the result is JSON."""
    initial, trained = model(), syncbn.convert_sync_batchnorm(model())
    trained(torch.randn(8, 3))
    trained.append(nn.BatchNorm1d(2))
    initial.add_module("head", nn.BatchNorm1d(2))
    found = compare_statistics(trained, initial)
    assert list(found.layers) == ["1", "3"]
    assert (found.only_in_a, found.only_in_b) == (("4",), ("head",))
    assert found.layers["1"].num_batches_tracked == (1, 0)
    shown = json.loads(json.dumps(found.to_dict(vectors=True)))
    assert shown["layers"][0]["difference"]["running_mean"]["values"] == pytest.approx(trained[1].running_mean.tolist())
    assert shown["only_in_b"] == ["head"]


def test_statistics_of_two_times_can_be_compared() -> None:
    """What layer_statistics returned before recalibration, against the model after it."""
    net = model()
    before = layer_statistics(net)
    syncbn.recalibrate(net, [torch.randn(64, 3) + 5])
    assert compare_statistics(net, before).layers["1"].distance > 0.01


def test_models_without_a_common_layer_are_refused() -> None:
    """The error lists the names of both."""
    with pytest.raises(InputError, match=r"nothing to compare: a has the layers '1', '3', b \(none\): expected"):
        compare_statistics(model(), nn.Linear(2, 2))
