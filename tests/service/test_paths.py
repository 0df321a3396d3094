"""Tests of service/paths.py."""

import pytest

from service.paths import PathError, assign


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        ({}, "seed", {"seed": 1}),
        ({"seed": 0}, "seed", {"seed": 1}),
        ({}, "optimizer.lr", {"optimizer": {"lr": 1}}),
        ({"model": {"args": {"stem": "small"}}}, "model.args.width", {"model": {"args": {"stem": "small", "width": 1}}}),
        ({"model": {"args": {}}}, "model", {"model": 1}),
    ],
)
def test_a_value_comes_to_its_place(before, path, after):
    """What is beside it stays; sections that are missing are made."""
    assign(before, path, 1)

    assert before == after


@pytest.mark.parametrize(
    ("path", "words"), [("", "is not KEY.KEY"), ("a..b", "is not KEY.KEY"), ("seed.x", "seed is 3; expected a mapping")]
)
def test_a_path_that_leads_nowhere(path, words):
    """The message says where it ends."""
    with pytest.raises(PathError, match=words):
        assign({"seed": 3}, path, 1)
