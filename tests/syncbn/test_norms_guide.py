"""The guide to the kinds of norm: it names each, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from syncbn import norm_kinds

GUIDE = (Path(__file__).parents[2] / "docs" / "norms.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_every_kind_is_in_both_tables() -> None:
    """Which kind when, and what it costs."""
    when, costs = GUIDE.split("## ")[1:3]
    for kind in norm_kinds():
        assert f"| {kind} |" in when
        assert kind in costs


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_run(example) -> None:
    """As they are written."""
    exec(example, {})
