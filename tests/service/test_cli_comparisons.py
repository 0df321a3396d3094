"""The command `compare` against the real application."""

import json

import pytest

from tests.support.live_service import SPEC


@pytest.fixture
def compare(run, tmp_path):
    """Run `compare` beside a file spec.json."""
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    return lambda *args: run("compare", *args)


def test_norms_are_compared_and_shown_as_a_table(compare):
    """I name the kinds and wait; one line each, with what came of it."""
    result = compare("spec.json", "--norms", "sync_bn,batch_norm, group_norm", "--follow")
    head, columns, *rows = result.stdout.splitlines()

    assert result.exit_code == 0, result.output
    assert head.startswith("cmp_")
    assert head.endswith("ended  norm.kind")
    assert columns.split() == ["VALUE", "STATE", "STEP", "val/accuracy", "train/loss", "SAMPLES/S", "SYNC", "MS", "SYNC", "HEALTH"]
    assert [row.split()[:6] for row in rows] == [
        [kind, "succeeded", "3/3", "0.93", "(0.93)", "0.3333"] for kind in ("sync_bn", "batch_norm", "group_norm")
    ]


def test_any_field_is_compared_and_the_table_is_shown_again_by_its_id(compare):
    """Numbers stay numbers; `--set` changes what all have in common; the id shows the same table later."""
    started = compare("spec.json", "--vary", "optimizer.lr=0.1,1e-2", "--set", "seed=7", "--json")
    comparison = json.loads(started.stdout)
    again = json.loads(compare(comparison["id"], "--follow", "--json").stdout)

    assert started.exit_code == 0, started.output
    assert (comparison["field"], comparison["spec"]["seed"]) == ("optimizer.lr", 7)
    assert [row["value"] for row in again["rows"]] == [0.1, 0.01]
    assert (again["id"], again["state"]) == (comparison["id"], "ended")


def test_a_comparison_is_only_checked(compare):
    """Every spec with every default, and nothing is started."""
    checked = json.loads(compare("spec.json", "--norms", "sync_bn,group_norm", "--dry-run").stdout)

    assert [spec["norm"]["kind"] for spec in checked["specs"]] == ["sync_bn", "group_norm"]
    assert compare("cmp_" + "0" * 26, "--dry-run").exit_code == 2


def test_a_variant_that_fails_is_exit_code_1(compare):
    """For scripts."""
    result = compare("spec.json", "--vary", "name=good,fails", "--follow")

    assert result.exit_code == 1
    assert [row.split()[1] for row in result.stdout.splitlines()[2:]] == ["succeeded", "failed"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["spec.json"], "neither is given"),
        (["spec.json", "--norms", "a,b", "--vary", "seed=1,2"], "both are given"),
        (["spec.json", "--vary", "seed"], "is not KEY.KEY=VALUE,VALUE"),
        (["spec.json", "--norms", "sync_bn,nosuch"], "values.1:norm.kind"),
        (["cmp_" + "0" * 26, "--norms", "a,b"], "is started already"),
        (["cmp_" + "0" * 26], "comparison_not_found"),
    ],
)
def test_what_cannot_be_compared_is_exit_code_2(compare, args, words):
    """Every mistake has its sentence."""
    result = compare(*args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.split())
