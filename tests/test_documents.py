"""The documents say what the code does: names that a user may rely on are looked up on both sides."""

import re
from pathlib import Path

import pytest
import yaml

from service.app import create_app
from service.settings import Settings
from worker.contract import DATASETS, MODELS, NORMS, TASKS, EventType, FailureCode, JobSpec, parse_spec

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
API = (ROOT / "docs/api.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
SPEC = (ROOT / "docs/job-spec.md").read_text()


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
