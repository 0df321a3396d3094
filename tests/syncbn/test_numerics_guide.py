"""docs/numerics.md: its examples run, its tests exist, its list of private names is whole, and other schemes lose what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from syncbn.moments import Moments, merge

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "numerics.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_run(example) -> None:
    """As they are written, their assertions included."""
    exec(example, {})


def test_every_test_that_is_named_exists() -> None:
    """A figure's test can be found."""
    named = set(re.findall(r"`((?:\w+/)?(?:test_\w+|oracle)\.py)`", GUIDE))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "tests" / "syncbn" / name).exists()] == []


def test_every_private_name_of_torch_is_listed() -> None:
    """What a new version of torch may change without notice is known beforehand."""
    sources = [path.read_text() for path in (ROOT / "syncbn").rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"\b((?:torch|nn|dist)(?:\.\w+)*?\._\w+(?:\.\w+)*)", text)}
    assert len(used) >= 4
    assert [name for name in sorted(used) if f"`{name}`" not in GUIDE] == []


def two_moments(parts: list[Tensor]) -> Tensor:
    """E[x^2] - E[x]^2 in float32, summed over ranks."""
    rows = sum(len(part) for part in parts)
    mean, square = (sum(f(part).sum(0) for part in parts) / rows for f in (lambda x: x, lambda x: x * x))
    return square - mean * mean


def gathered_invstd(parts: list[Tensor]) -> Tensor:
    """Each rank's (mean, 1 / sqrt(var + eps), n) in float32, merged as torch.nn.SyncBatchNorm's kernel merges them."""
    eps, n, mean, squares = 1e-5, 0, torch.zeros(parts[0].shape[1]), torch.zeros(parts[0].shape[1])
    for part in parts:
        var, local = torch.var_mean(part, 0, correction=0)
        invstd = (var + eps).rsqrt()
        var = (1 / invstd) ** 2 - eps
        delta, total = local - mean, n + len(part)
        squares += var * len(part) + delta * delta * n * len(part) / total
        mean, n = mean + delta * len(part) / total, total
    return squares / n


def ours(parts: list[Tensor]) -> Tensor:
    """Local float32 moments, merged in float64."""
    found = [torch.var_mean(part, 0, correction=0) for part in parts]
    n = torch.tensor([float(len(part)) for part in parts])
    moments = merge(
        Moments(n, torch.stack([m for _, m in found]), torch.stack([v * len(p) for p, (v, _) in zip(parts, found, strict=True)]))
    )
    return moments.M2 / moments.n


SCHEMES = (two_moments, gathered_invstd, ours)
ROWS = re.findall(r"^\| ([\d.e-]+), ([\d.e-]+) \|((?: (?:under|over) [^|]*\|){3})$", GUIDE, re.MULTILINE)


def test_the_table_of_schemes_was_found() -> None:
    """Six rows."""
    assert len(ROWS) == 6


@pytest.mark.parametrize(("mean", "std", "cells"), ROWS)
def test_each_scheme_loses_what_the_table_says(mean, std, cells) -> None:
    """Each cell is a bound that the scheme keeps, or exceeds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * 4096, 64, generator=generator, dtype=torch.float64) * float(std) + float(mean)
    x = x.float()
    exact = x.double().var(0, correction=0)
    for scheme, (side, bound, rest) in zip(SCHEMES, re.findall(r"(under|over) ([\d.e-]+)([^|]*)", cells), strict=True):
        found = scheme(list(x.chunk(8))).double()
        worst = float(((found - exact).abs() / exact).max())
        assert worst < float(bound) if side == "under" else worst > float(bound), f"{scheme.__name__}: {worst:.1e}"
        assert ("negative" in rest) <= bool((found < 0).any())
