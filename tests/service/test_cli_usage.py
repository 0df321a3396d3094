"""The command `usage`, against the real application."""

import json

from service.client import Client
from tests.support.live_service import SPEC


def test_usage_is_a_row_a_group(run, service):
    """What is used, over what may be; without quotas it says so."""
    assert "no quota" in run("usage").stderr
    (service.home / "policy.toml").write_text('[[quotas]]\nlabel = "team"\nworkers = 9\nstorage_bytes = 2048\n')
    try:
        with Client(service.url, service.token) as client:
            client.submit(SPEC | {"name": "forever", "labels": {"team": "vision"}})
        shown = run("usage").stdout
        assert "team=vision" in shown
        assert "/9" in shown
        assert "/2.0 KiB" in shown
        [row] = json.loads(run("usage", "--json").stdout)["data"]
        assert (row["value"], row["limits"]) == ("vision", {"workers": 9, "storage_bytes": 2048})
    finally:
        (service.home / "policy.toml").unlink()
