"""Tests of service/variants.py: from one spec to those of a comparison."""

import pytest

from service.errors import InvalidError
from service.store.ids import new_id
from service.variants import variants
from tests.service.store.ranks import SPEC

ID = new_id("cmp")


def test_variants_are_alike_but_for_the_field_the_name_and_a_label():
    """Same seed, same order, same everything else; the submitted document is not touched."""
    document = SPEC | {"labels": {"team": "vision"}}
    specs = variants(document, "norm.kind", ["sync_bn", "group_norm"], ID)

    assert [(spec.norm.kind, spec.name) for spec in specs] == [("sync_bn", "t sync_bn"), ("group_norm", "t group_norm")]
    assert [spec.labels for spec in specs] == [{"team": "vision", "comparison": ID}] * 2
    first, second = (spec.model_dump(exclude={"name", "norm"}) for spec in specs)
    assert first == second
    assert document == SPEC | {"labels": {"team": "vision"}}


def test_arguments_of_a_kind_stay_with_it():
    """The spec names ghost_bn and its virtual batches: sync_bn is compared all the same, and takes none of it."""
    document = SPEC | {"norm": {"kind": "ghost_bn", "args": {"virtual_batch_size": 4}, "eps": 1e-3}}
    specs = variants(document, "norm.kind", ["sync_bn", "ghost_bn", "batch_renorm"], ID)

    assert [spec.norm.args.get("virtual_batch_size") for spec in specs] == [None, 4, None]
    assert [spec.norm.eps for spec in specs] == [1e-3] * 3


def test_any_field_may_vary():
    """A number, a whole section, the name itself."""
    values = [{"name": "sgd", "lr": 0.5}, {"name": "adamw", "lr": 0.001}]

    assert [spec.optimizer.name for spec in variants(SPEC, "optimizer", values, ID)] == ["sgd", "adamw"]
    assert [spec.seed for spec in variants(SPEC, "seed", [1, 2], ID)] == [1, 2]
    assert [spec.name for spec in variants(SPEC, "name", ["a", "b"], ID)] == ["a", "b"]
    assert [len(spec.name) for spec in variants(SPEC | {"name": "n" * 127}, "seed", [1, 2], ID)] == [128, 128]


def test_an_error_names_the_variant_and_what_all_have_in_common_is_said_once():
    """Of three variants one is wrong; the spec itself is wrong in another place."""
    with pytest.raises(InvalidError) as caught:
        variants(SPEC | {"batch_size": 0}, "norm.kind", ["sync_bn", "group_nrom", "batch_norm"], ID)
    found = {problem.loc: problem for problem in caught.value.problems}

    assert set(found) == {"spec.batch_size", "values.1:norm.kind"}
    assert found["values.1:norm.kind"].value == "group_nrom"
    assert caught.value.code == "invalid_spec"


@pytest.mark.parametrize("field", ["", "norm..kind", "name.x"])
def test_a_field_that_is_no_place_in_a_spec(field):
    """The path itself is the problem, not the values."""
    with pytest.raises(InvalidError) as caught:
        variants(SPEC, field, [1, 2], ID)

    assert [problem.loc for problem in caught.value.problems] == ["field"]
