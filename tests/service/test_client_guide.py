"""docs/client.md: its examples run as they are written, against a live service."""

import re
from pathlib import Path

import pytest

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent.parent / "docs/client.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the examples leave behind, in turn: the last one shows a job of the first."""
    return []


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number, names, service, tmp_path, monkeypatch):
    """Whoever copies one gets what the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNCBN_HOME", str(service.home))
    for variable in ("SYNCBN_URL", "SYNCBN_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    found = {}
    exec(EXAMPLES[number], found)
    names.append(found)
    if number == 0:
        assert found["job"]["state"] == "succeeded"
        assert (tmp_path / "checkpoint" / "manifest.json").exists()
    if "losses" in found:
        assert found["losses"] == [pytest.approx(1 / 3)] * 3
    if "figure" in found:
        assert len(found["figure"].data) == 2
        assert len(found["points"]) == 3
