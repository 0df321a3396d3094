"""The single checks of `syncbn doctor`: each finds what it is for, says how to mend it, and is content where nothing is wrong."""

import os
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace

import psutil
import pytest

from service.cli import checks, reach
from service.settings import Settings


@pytest.fixture
def at_service(service, monkeypatch):
    """Look at the live service."""
    monkeypatch.setenv("SYNCBN_HOME", str(service.home))
    monkeypatch.setenv("SYNCBN_URL", service.url)
    monkeypatch.delenv("SYNCBN_TOKEN", raising=False)


@pytest.fixture
def strange_service(monkeypatch):
    """A service of another version whose clock is an hour ahead."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"status": "ok", "info": {"version": "99.0"}, "data": [], "has_more": false}'
            self.send_response_only(200)
            self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("SYNCBN_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("SYNCBN_TOKEN", "t")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def _settings(tmp_path, **given):
    return Settings(home=tmp_path, **given)


@pytest.mark.parametrize("check", [reach.controller, reach.service_version, reach.clock])
def test_a_service_like_this_one_is_well(at_service, tmp_path, check):
    """Same version, same clock, the token opens."""
    assert (check(_settings(tmp_path)).status, check(_settings(tmp_path)).remedy) == ("ok", "")


def test_another_version_and_another_clock_are_found(strange_service, tmp_path):
    """Both with figures, and with what to do."""
    version, clock = reach.service_version(_settings(tmp_path)), reach.clock(_settings(tmp_path))
    assert version.status == clock.status == "warn"
    assert "99.0 at http" in version.found
    assert "pip install 'syncbn[service]==99.0'" in version.remedy
    assert "ahead of" in clock.found
    assert abs(int(clock.found.split()[4]) - 3600) < 60
    assert "time server" in clock.remedy


def test_an_address_that_is_none_is_found(tmp_path, monkeypatch):
    """A typing error in SYNCBN_URL is a finding, not the end of the doctor."""
    monkeypatch.setenv("SYNCBN_URL", "nonsense")
    assert reach.controller(_settings(tmp_path)).status == "fail"
    assert "SYNCBN_URL" in reach.controller(_settings(tmp_path)).remedy


def test_a_policy_file_is_read_as_the_controller_reads_it(tmp_path):
    """None is fine, a good one is fine, a wrong one is named with its mistake, one that was asked for must be there."""
    assert reach.policy(_settings(tmp_path)).status == "ok"
    (tmp_path / "policy.toml").write_text("preempt = true\n")
    assert reach.policy(_settings(tmp_path)).status == "ok"
    (tmp_path / "policy.toml").write_text("[[quotas]]\nlable = 'team'\n")
    assert "quotas.0.lable is 'team'" in reach.policy(_settings(tmp_path)).found
    assert reach.policy(_settings(tmp_path)).status == "fail"
    assert reach.policy(_settings(tmp_path, policy=str(tmp_path / "nowhere.toml"))).status == "fail"


def test_an_unknown_storage_profile_is_found(tmp_path, monkeypatch):
    """The profile that the storage names is not in the file."""
    profiles = tmp_path / "profiles.toml"
    profiles.write_text("[other]\n")
    monkeypatch.setenv("SYNCBN_STORAGE_PROFILES", str(profiles))
    found = reach.storage(_settings(tmp_path, storage="s3://bucket/x?profile=team"))
    assert found.status == "fail"
    assert "'team'" in found.found
    assert "SYNCBN_STORAGE_PROFILES" in found.remedy
    assert reach.storage(_settings(tmp_path)).status == "ok"


def test_a_storage_that_does_not_answer_is_found(tmp_path, monkeypatch):
    """The profile's endpoint is nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(f'[team]\nendpoint = "http://127.0.0.1:{port}"\nanonymous = true\n')
    monkeypatch.setenv("SYNCBN_STORAGE_PROFILES", str(profiles))
    found = reach.storage(_settings(tmp_path, storage="s3://bucket/x?profile=team"))
    assert found.status == "fail"
    assert "endpoint" in found.remedy


def test_the_interface_towards_ray_is_named(tmp_path, monkeypatch):
    """The way to the head leads over an interface that is there; a head nobody knows is found."""
    assert reach.interface(_settings(tmp_path)).status == "ok"
    found = reach.interface(_settings(tmp_path, ray_address="127.0.0.1:6379"))
    assert (found.status, "127.0.0.1 on lo" in found.found) == ("ok", True)
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    assert reach.interface(_settings(tmp_path, ray_address="127.0.0.1:6379")).status == "warn"
    assert reach.interface(_settings(tmp_path, ray_address="no.such.host.invalid:6379")).status == "fail"


def test_a_full_disk_is_found_at_the_home_and_at_the_storage(tmp_path, monkeypatch):
    """Little room at either is too little."""
    (tmp_path / "store").mkdir()
    settings = _settings(tmp_path, storage=str(tmp_path / "store"))
    assert checks.disk(settings).status == "ok" or checks.disk(settings).remedy
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000 if place.name == "store" else 10**12))
    found = checks.disk(settings)
    assert found.status == "warn"
    assert f"0.0 GiB free at the storage {tmp_path / 'store'}" in found.found


def test_a_taken_port_says_by_whom(tmp_path):
    """I see which program to end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = checks.port(_settings(tmp_path, port=server.getsockname()[1]))
    assert found.status == "fail"
    assert f"(pid {os.getpid()})" in found.found


@pytest.mark.parametrize(
    ("seen", "status", "words"),
    [
        ("None 0 \n", "warn", "built without CUDA"),
        ("13.0 0 \n", "warn", "upgrade the driver"),
        ("13.0 1 0\n", "warn", "CUDA_VISIBLE_DEVICES is 0"),
        ("13.0 2 \n", "ok", "torch sees 2"),
        ("", "warn", "torch does not load"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_found(tmp_path, monkeypatch, seen, status, words):
    """The driver lists two; why training sees fewer, and what to do."""
    listed = tmp_path / "nvidia-smi"
    listed.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    listed.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(checks, "_SEEN", f"print({seen!r}, end='')" if seen else "raise ImportError")
    found = checks.gpu(_settings(tmp_path))
    assert (found.status, words in f"{found.found}; {found.remedy}") == (status, True)


def test_without_a_driver_there_is_no_gpu_to_miss(tmp_path, monkeypatch):
    """A machine without GPUs is well."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.gpu(_settings(tmp_path)).status == "ok"
