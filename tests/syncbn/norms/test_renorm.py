"""batch_renorm: the correction and its clipping, over all ranks or one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from syncbn import build_norm
from syncbn.norms.renorm import Clipping
from tests.syncbn.norms.oracles import C, errors_against, filled, moved, per_channel, steps_on_ranks, valid_in, whole_batch

TIGHT = {"r_max": 1.5, "d_max": 0.8, "start": 0, "r_end": 2, "d_end": 0}


def reference(x, p, state, training):
    """The paper's algorithm 1 with clipping that grows over two steps for r, and is there from the first for d."""
    weight, bias = per_channel(p["weight"], x), per_channel(p["bias"], x)
    mu, sigma = per_channel(state["running_mean"], x), (per_channel(state["running_var"], x) + 1e-5).sqrt()
    if not training:
        return (x - mu) / sigma * weight + bias
    dims = (0, *range(2, x.dim()))
    mean, std = x.mean(dims, keepdim=True), (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    r_max = 1 + 0.5 * float(state["step"]) / 2
    r = (std / sigma).clamp(1 / r_max, r_max).detach()
    d = ((mean - mu) / sigma).clamp(-0.8, 0.8).detach()
    y = ((x - mean) / std * r + d) * weight + bias
    moved(state, x)
    return y


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("spatial", [(3, 2), ()])
def test_equals_the_formula_over_all_ranks(world_size, spatial, ranks) -> None:
    """Outputs, gradients, running statistics and evaluation of any number of ranks, one of them empty."""
    results = ranks.run(world_size, steps_on_ranks, "batch_renorm", TIGHT, spatial)
    wanted = whole_batch(reference, filled(build_norm("batch_renorm", C)), 3 if world_size == 2 else 7, spatial)
    errors = errors_against(wanted, results)
    assert max(errors.values()) < 1e-12, errors


def on_valid_rows(x, p, state, training):
    """The reference of the valid values alone, 0 elsewhere."""
    rows = reference(x.movedim(1, -1)[valid_in(x)], p, state, training)
    y = torch.zeros(x.movedim(1, -1).shape, dtype=x.dtype)
    return y.index_put((valid_in(x),), rows).movedim(-1, 1)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("spatial", [(3, 2), ()])
def test_a_mask_leaves_the_rest_out(world_size, spatial, ranks) -> None:
    """Everything is that of the valid values, over all ranks, whatever is elsewhere."""
    results = ranks.run(world_size, steps_on_ranks, "batch_renorm", TIGHT, spatial, True)
    wanted = whole_batch(on_valid_rows, filled(build_norm("batch_renorm", C)), 7, spatial, masked=True)
    errors = errors_against(wanted, results)
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.ranks
def test_without_synchronization_each_rank_is_alone(ranks) -> None:
    """The full rank's results are those of one process; the empty one's running statistics stay."""
    full, empty = ranks.run(2, steps_on_ranks, "batch_renorm", TIGHT | {"synchronized": False}, (3, 2))
    wanted = whole_batch(reference, filled(build_norm("batch_renorm", C)), 3, (3, 2))
    assert max(errors_against(wanted, [full]).values()) < 1e-12
    assert torch.equal(empty["running_mean"], torch.zeros(C).double())


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [(0, 1, 0), (5_000, 1, 0), (15_000, 1 + 2 / 3.5, 2.5), (25_000, 1 + 8 / 7, 5), (40_000, 3, 5), (10**6, 3, 5)],
)
def test_clipping_grows_as_in_the_paper(step, r_max, d_max) -> None:
    """Plain batch normalization for 5000 steps, then linearly to 3 at 40,000 and 5 at 25,000."""
    found = Clipping().at(torch.tensor(step))
    assert [limit.item() for limit in found] == pytest.approx([r_max, d_max])


def test_it_begins_as_batch_norm_and_keeps_its_state_dict() -> None:
    """With the default schedule the first steps are batch normalization, and the state goes both ways."""
    x = torch.randn(6, 4, 3)
    layer, plain = build_norm("batch_renorm", 4), nn.BatchNorm1d(4)
    torch.testing.assert_close(layer(x), plain(x))
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain.eval()(x))


def test_half_precision_keeps_its_dtype() -> None:
    """Statistics stay float32, the result is the input's type."""
    layer = build_norm("batch_renorm", 4, start=0, r_end=0, d_end=0)
    x = torch.randn(6, 4, 3)
    torch.testing.assert_close(copy.deepcopy(layer)(x.bfloat16()).float(), layer(x.bfloat16().float()), rtol=2e-2, atol=2e-2)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_copies_and_pickles() -> None:
    """A process group is shared by a copy and left out of a pickle."""
    layer = build_norm("batch_renorm", 4)
    layer.process_group = group = object()
    assert copy.deepcopy(layer).process_group is group
    assert pickle.loads(pickle.dumps(layer)).process_group is None
