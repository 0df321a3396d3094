"""The documents say what the code does: names that a user may rely on are looked up on both sides."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from service.app import create_app
from service.cli.app import app as command_line
from service.settings import Settings
from worker.contract import DATASETS, MODELS, NORMS, TASKS, EventType, FailureCode, JobSpec, parse_spec

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
API = (ROOT / "docs/api.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
SPEC = (ROOT / "docs/job-spec.md").read_text()
# Their examples run in tests of their own.
GUIDES = {"numerics.md", "norms.md", "tasks.md", "client.md"}


def _missing_links(document: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    return [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_documents_leads_somewhere(document):
    """A reader who clicks arrives."""
    assert _missing_links(document) == []


def test_a_missing_link_is_found(tmp_path):
    """The test above can fail."""
    (tmp_path / "a.md").write_text("see [this](nowhere.md)")

    assert _missing_links(tmp_path / "a.md") == ["nowhere.md"]


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_documented(field):
    """An operator finds each variable."""
    assert f"SYNCBN_{field.upper()}" in OPERATIONS


def test_every_route_is_documented(tmp_path):
    """A user of the API finds each route."""
    routes = create_app(Settings(home=tmp_path)).openapi()["paths"]
    shown = [path.replace("/v1/jobs/{job_id}/checkpoints/{step}", ".../checkpoints/{step}").replace("{job_id}", "{id}") for path in routes]

    assert [path for path in shown if path not in API] == []


@pytest.mark.parametrize("word", [*EventType, *FailureCode])
def test_every_event_type_and_failure_is_documented(word):
    """A script that looks at types and reasons finds them all."""
    assert f"`{word}`" in API


def test_the_documented_spec_names_every_key_and_the_defaults():
    """The page's example is a valid spec, has every key, and shows the defaults."""
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", SPEC, re.DOTALL).group(1))
    default = parse_spec({key: example[key] for key in ("name", "model", "data")})

    assert set(example) | {"steps"} == set(JobSpec.model_fields)
    assert parse_spec(example) == default


@pytest.mark.parametrize("name", [*TASKS, *MODELS, *DATASETS, *NORMS])
def test_every_name_of_the_catalogue_is_documented(name):
    """Whatever a spec may name is on its page."""
    assert name in SPEC


def _blocks(language: str) -> list:
    """Return what the documents show in a language, block by block."""
    return [
        pytest.param(block, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL))
        if not (language == "python" and path.name in GUIDES)
    ]


@pytest.mark.parametrize("example", _blocks("python"))
def test_examples_in_python_run(example, tmp_path, monkeypatch):
    """As they are written; those that begin with a file name as a program in that file, and the README's checkpoint is there."""
    monkeypatch.chdir(tmp_path)
    script = re.match(r"# (\w+\.py)\n", example)
    if script is None:
        exec(_PRELUDE if "load_file" in example else "", names := {})
        exec(example, names)
        return
    (tmp_path / script[1]).write_text(example)
    done = subprocess.run([sys.executable, script[1]], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


_PRELUDE = """
import torch, safetensors.torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
safetensors.torch.save_file(model.state_dict(), "model.safetensors")
"""


@pytest.mark.parametrize("example", _blocks("yaml"))
def test_specs_that_are_shown_are_accepted(example):
    """Whoever copies one can submit it."""
    document = yaml.safe_load(example)
    if {"name", "model", "data"} <= set(document):
        assert parse_spec(document).name == document["name"]


def _commands(text: str) -> list[str]:
    """Return the calls of the command line in a document: inline, and at the beginning of lines and after a semicolon in blocks."""
    blocks = re.findall(r"```(?:bash)?\n(.*?)```|((?:^    .*\n)+)", text, re.DOTALL | re.MULTILINE)
    lines = [part.strip() for block in blocks for line in "".join(block).splitlines() for part in line.partition("  #")[0].split(";")]
    return [call for call in [*lines, *re.findall(r"`([^`\n]+)`", text)] if re.match(r"syncbn [a-z]", call)]


def _unknown(call: str) -> list[str]:
    """Return what the command line does not know of a call."""
    command = typer.main.get_command(command_line)
    words = call.split()[1:]
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return [words[0]]
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    return [word for word in words if word.startswith("-") and word != "-" and word not in known]


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if _commands(path.read_text())], ids=lambda path: path.name)
def test_commands_that_are_shown_exist(document):
    """Whoever types one is understood, options included."""
    assert [(call, unknown) for call in _commands(document.read_text()) if (unknown := _unknown(call))] == []


def test_a_command_that_does_not_exist_is_found():
    """The test above can fail."""
    text = "see `syncbn fly`\n\n    syncbn ls --wings     # and\n    syncbn down; syncbn checkpoints ls JOB\n"

    assert [_unknown(call) for call in _commands(text)] == [["--wings"], [], [], ["fly"]]
