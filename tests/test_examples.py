"""Examples of the documents in the words of other programs: shell, TOML and parts of a spec. Whoever copies one gets what it says."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from service.quotas import Policy
from tests.support.live_service import live_service
from worker.contract import parse_spec
from worker.storage.profiles import Profile

ROOT = Path(__file__).parent.parent


def _block(document: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL).group(1)


def test_the_calls_with_curl_work(tmp_path):
    """The README's script against a live service: submitted, followed to the end, downloaded and checked."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    (tmp_path / "home").mkdir()
    with live_service(tmp_path / "home") as service:
        script = _block("README.md", "bash").replace("http://127.0.0.1:8470", service.url)
        environment = {**os.environ, "SYNCBN_HOME": str(service.home)}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert "event: end" in done.stdout
    digest = re.search(r"^([0-9a-f]{64})  model.safetensors$", done.stdout, re.MULTILINE).group(1)
    assert f'etag: "{digest}"' in done.stdout.lower()


def test_the_policy_that_is_shown_is_accepted():
    """An operator who copies it has these limits."""
    policy = Policy.model_validate(tomllib.loads(_block("docs/scheduling.md", "toml")))
    assert [quota.gpus for quota in policy.quotas] == [32, 16, None]


def test_the_storage_profile_that_is_shown_is_accepted():
    """An operator who copies it has this way into the bucket."""
    assert Profile.model_validate(tomllib.loads(_block("docs/checkpoints.md", "toml"))["team"]).region == "eu-central-1"


def test_the_data_section_that_is_shown_is_accepted():
    """Whoever copies it into a spec can submit it."""
    section = yaml.safe_load(_block("docs/data.md", "yaml"))
    model = {"name": "resnet18", "args": {}}
    assert parse_spec({"name": "a", "model": model, **section}).data.name == "imagefolder"
