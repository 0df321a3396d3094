"""What the shell completes: typed as the scripts of `syncbn --install-completion` ask for it."""

import json

import pytest
from typer.testing import CliRunner

from service.cli.app import app
from service.cli.completion import assignments, norm_kinds
from tests.support.live_service import SPEC


@pytest.fixture
def complete(run, monkeypatch):
    """Return what bash is offered for a line whose last word is not finished. `run` sets the environment."""

    def offered(*words):
        monkeypatch.setenv("COMP_WORDS", " ".join(["syncbn", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        result = CliRunner().invoke(app, [], prog_name="syncbn", env={"_SYNCBN_COMPLETE": "complete_bash"})
        return result.stdout.split()

    return offered


def test_ids_and_names_of_jobs_are_completed(run, complete, tmp_path):
    """I type the beginning of an id, or of a name, and get the job that I mean."""
    (tmp_path / "spec.yaml").write_text(json.dumps({**SPEC, "name": "unmistakable"}))
    job = json.loads(run("submit", "spec.yaml", "--json").stdout)["id"]
    assert job in complete("get", "job_")
    assert complete("get", job[:-1]) == [job]
    assert complete("watch", "unmis") == ["unmistakable"]
    assert json.loads(run("get", "unmistakable", "--json").stdout)["id"] == job
    assert complete("checkpoints", "ls", "unmis") == ["unmistakable"]


def test_without_a_service_nothing_is_offered_and_nothing_said(complete, monkeypatch):
    """A completion that cannot be made is none; my prompt stays as it is."""
    monkeypatch.setenv("SYNCBN_URL", "http://127.0.0.1:9")
    assert complete("get", "job_") == []
    monkeypatch.setenv("SYNCBN_URL", "nonsense")
    assert complete("get", "job_") == []


def test_fields_of_the_spec_and_their_values(complete):
    """--set knows what a spec may say."""
    assert complete("submit", "spec.yaml", "--set", "optimizer.mo") == ["optimizer.momentum="]
    assert complete("ls", "--state", "succ") == ["succeeded"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("precision=bf", ["precision=bf16"]),
        ("norm.kind=sy", ["norm.kind=sync_bn"]),
        ("channels_last=", ["channels_last=false", "channels_last=true"]),
        ("optimizer.name=", ["optimizer.name=adamw", "optimizer.name=sgd"]),
        ("average.ki", ["average.kind="]),
        ("seed=", []),
        ("nonsense.x=", []),
    ],
)
def test_values_are_those_of_the_contract(typed, offered):
    """Of a field with few values I am shown them all."""
    assert assignments(typed) == offered


def test_kinds_to_compare_are_completed_one_after_the_other():
    """A list goes on; what is in it already is not offered again."""
    assert norm_kinds("sync_bn,gr") == ["sync_bn,group_norm"]
    assert "sync_bn,sync_bn" not in norm_kinds("sync_bn,")
