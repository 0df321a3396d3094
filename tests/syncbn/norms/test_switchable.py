"""switchable: the mixture by its definition, over all ranks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from syncbn import build_norm
from tests.syncbn.norms.oracles import C, errors_against, filled, moved, per_channel, steps_on_ranks, valid_in, whole_batch


def reference(x, p, state, training):
    """Three means and three variances of the raw values, mixed; two without space."""
    space, batch = tuple(range(2, x.dim())), (0, *range(2, x.dim()))
    dims = [space, (1, *space), batch][0 if space else 1 :]
    means = [x.mean(d, keepdim=True) for d in dims]
    variances = [x.var(d, correction=0, keepdim=True) for d in dims]
    if training:
        moved(state, x)
    else:
        means[-1], variances[-1] = per_channel(state["running_mean"], x), per_channel(state["running_var"], x)
    a, b = (p[name][-len(dims) :].softmax(0) for name in ("mean_weight", "var_weight"))
    mean = sum(w * m for w, m in zip(a, means, strict=True))
    var = sum(w * v for w, v in zip(b, variances, strict=True))
    return (x - mean) / (var + 1e-5).sqrt() * per_channel(p["weight"], x) + per_channel(p["bias"], x)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("spatial", [(3, 2), (), (1, 1)])
def test_equals_the_formula_over_all_ranks(world_size, spatial, ranks) -> None:
    """Outputs, all gradients (those of the proportions too), running statistics and evaluation, with an empty rank."""
    results = ranks.run(world_size, steps_on_ranks, "switchable", {}, spatial)
    reshaped = reference if spatial != (1, 1) else lambda x, *rest: reference(x.flatten(1), *rest).view_as(x)
    wanted = whole_batch(reshaped, filled(build_norm("switchable", C)), 3 if world_size == 2 else 7, spatial)
    errors = errors_against(wanted, results)
    assert max(errors.values()) < 1e-12, errors


def of_valid_rows(x, p, state, training):
    """The same of the valid values of each sample, one sample after the other; 0 elsewhere."""
    mask, channels_last = valid_in(x), x.movedim(1, -1)
    batch = channels_last[mask]
    dims = slice(0 if x.dim() > 2 else 1, None)
    a, b = (p[name][dims].softmax(0) for name in ("mean_weight", "var_weight"))
    mean, var = (batch.mean(0), batch.var(0, correction=0)) if training else (state["running_mean"], state["running_var"])
    samples = []
    for n in mask.view(len(mask), -1).any(1).nonzero().flatten():
        rows = channels_last[n][mask[n]].view(-1, C)  # (S, C)
        means = [rows.mean(0), rows.mean(), mean][dims]
        variances = [rows.var(0, correction=0), rows.var(correction=0), var][dims]
        mixed = sum(w * m for w, m in zip(a, means, strict=True)), sum(w * v for w, v in zip(b, variances, strict=True))
        samples.append((rows - mixed[0]) / (mixed[1] + 1e-5).sqrt() * p["weight"] + p["bias"])
    if training:
        moved(state, batch)
    return torch.zeros(channels_last.shape, dtype=x.dtype).index_put((mask,), torch.cat(samples)).movedim(-1, 1)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("spatial", [(3, 2), ()])
def test_a_mask_leaves_the_rest_out(world_size, spatial, ranks) -> None:
    """All three statistics are those of the valid values, whatever is elsewhere; a sample without any gives zeros."""
    results = ranks.run(world_size, steps_on_ranks, "switchable", {}, spatial, True)
    wanted = whole_batch(of_valid_rows, filled(build_norm("switchable", C)), 7, spatial, masked=True)
    errors = errors_against(wanted, results)
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize(("part", "kind"), [(0, "instance_norm"), (2, "batch_norm")])
def test_a_certain_proportion_is_that_norm(part, kind) -> None:
    """With all weight on one statistic the layer is the norm of that name."""
    layer = build_norm("switchable", 4)
    with torch.no_grad():
        layer.mean_weight[part] = layer.var_weight[part] = 1e4
    x = torch.randn(6, 4, 5, 3)
    torch.testing.assert_close(layer(x), build_norm(kind, 4)(x), rtol=1e-5, atol=1e-5)


def test_large_means_do_not_cancel() -> None:
    """At mean 1000 and deviation 0.1 the float32 result is that of float64."""
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, 3) * 0.1 + 1000
    layer, wide = build_norm("switchable", 4), build_norm("switchable", 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=3e-3, atol=3e-3)


def test_copies_and_pickles() -> None:
    """A process group is shared by a copy and left out of a pickle."""
    layer = build_norm("switchable", 4)
    layer.process_group = group = object()
    assert copy.deepcopy(layer).process_group is group
    assert pickle.loads(pickle.dumps(layer)).process_group is None
    assert isinstance(layer, nn.Module)
