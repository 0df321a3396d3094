"""Tests of service/settings.py."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import ClientSettings, Settings, inherited_environment


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("HOME", "HOST", "PORT", "DATABASE_URL", "STORAGE", "RAY_ADDRESS", "URL", "TOKEN", "ALLOWED_HOSTS"):
        monkeypatch.delenv(f"SYNCBN_{name}", raising=False)


def test_the_defaults_are_those_of_the_handbook():
    """Loopback, port 8470, everything in the home."""
    settings = Settings(home=Path("/h"))

    assert (settings.host, settings.port, settings.ray_address) == ("127.0.0.1", 8470, "")
    assert settings.store_url == "sqlite:////h/syncbn.db"
    assert settings.storage_path == Path("/h/storage")
    assert (settings.files.token, settings.files.controller) == (Path("/h/token"), Path("/h/controller.json"))
    assert Settings().home.name == "syncbn"


def test_the_environment_is_read_and_arguments_go_before_it(monkeypatch):
    """Flags of `serve` over variables."""
    for name, value in {"HOME": "/e", "PORT": "1", "STORAGE": "file:///data/my%20jobs", "ALLOWED_HOSTS": '["a.example"]'}.items():
        monkeypatch.setenv(f"SYNCBN_{name}", value)

    assert (Settings().home, Settings().port, Settings().allowed_hosts) == (Path("/e"), 1, ("a.example",))
    assert Settings().storage_path == Path("/data/my jobs")
    assert Settings(port=2).port == 2


@pytest.mark.parametrize(
    "storage", ["s3:///x", "http://169.254.169.254/", "file://host/x", "s3://key:secret@bucket/x", "s3://bucket/x?secret=y"]
)
def test_storage_elsewhere_is_refused_in_words(storage):
    """Not silently taken for a directory of that name."""
    with pytest.raises(ValidationError, match=r"use file:///path"):
        Settings(storage=storage)


@pytest.mark.parametrize("wrong", [{"port": 65_536}, {"port": -1}, {"host": ""}, {"heartbeat_s": 0}])
def test_values_out_of_range_are_refused(wrong):
    """At the start, not at the first request."""
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_a_token_does_not_show(monkeypatch):
    """Not in repr, and so in no log."""
    monkeypatch.setenv("SYNCBN_TOKEN", "sbn_secret")

    assert ClientSettings().token.get_secret_value() == "sbn_secret"
    assert "sbn_secret" not in repr(ClientSettings())


def test_child_processes_inherit_no_secret(monkeypatch):
    """The code of a job could read them: a rank is a child of Ray, and Ray of the controller."""
    for name in ("SYNCBN_TOKEN", "SYNCBN_DATABASE_URL", "PGPASSWORD", "SYNCBN_STORAGE"):
        monkeypatch.setenv(name, "canary")

    assert [name for name, value in inherited_environment().items() if value == "canary"] == ["SYNCBN_STORAGE"]


def test_data_roots_are_absolute():
    """A relative one would depend on where the controller was started."""
    assert Settings(data_roots=("/data", "file:///more", "s3://lake/x")).data_roots == ("/data", "/more", "s3://lake/x")
    with pytest.raises(ValidationError, match="'data'"):
        Settings(data_roots=("data",))
