"""Canaries: tokens and passwords that are used in every way, and then looked for everywhere they must not be."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.client import Client, ServiceError
from service.processes import marked
from tests.support.live_service import SPEC

MARK = "SYNCBN_TEST_OF_SECRETS"
START_TIMEOUT_S = 60


@pytest.fixture
def serving(tmp_path):
    """A controller with its own Ray, its output in a file, and every process of it marked."""
    home = tmp_path / "home"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBN_")}
    # setproctitle, which Ray's workers use, writes over the environment that /proc shows, unless told not to.
    environment |= {MARK: str(home), "SPT_NOENV": "1"}
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "service.cli.main", "serve", "--port", "0", "--home", str(home)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        yield home, log
    finally:
        subprocess.run(
            [sys.executable, "-m", "service.cli.main", "--home", str(home), "down"], check=False, capture_output=True, timeout=60
        )
        process.kill()
        process.wait()


def _until(look, what):
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (seen := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return seen


def _places(home, log):
    """Yield every place where a secret could have been left, and what is there."""
    for path in [log, *home.rglob("*")]:
        if path.is_file() and path.name not in {"token", "ray-token"}:
            yield str(path), path.read_bytes()
    for process in marked(MARK, str(home)):
        for part in ("cmdline", "environ"):
            # It may have ended.
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                yield f"{part} of {process.name()}", Path(f"/proc/{process.pid}/{part}").read_bytes()


@pytest.mark.ray
def test_no_token_is_left_in_the_database_the_logs_or_the_processes(serving):
    """The first token, one that was made, one that was wrong, and Ray's own; also after errors and a job that ran into one."""
    home, log = serving
    _until((home / "controller.json").exists, "the controller to listen")
    first = (home / "token").read_text().strip()
    wrong = "sbn_wrong_canary_" + "x" * 30
    with Client(home=home) as client:
        _until(lambda: client.cluster()["is_connected"], "the cluster")
        made = client.create_token("canary", ["read", "submit"])["token"]
        with Client(client.url, made) as other:
            job = other.submit(SPEC | {"resources": {"workers": 1}, "model": {"name": "resnet18", "args": {"width": 2}}, "steps": 2})
            with pytest.raises(ServiceError):
                other.submit(SPEC | {"name": "", "made": "up"})
        with Client(client.url, wrong) as other, pytest.raises(ServiceError) as refused:
            list(other.jobs())
        assert wrong not in str(refused.value)
        _until(lambda: client.job(job["id"])["attempts"], "the job's gang")
        _until(lambda: len(list(marked(MARK, str(home)))) > 4, "processes of Ray")
        secrets = {"first": first, "made": made, "wrong": wrong, "ray": (home / "ray-token").read_text()}
        places = dict(_places(home, log))
        client.cancel(job["id"])

    assert {name.partition(" of ")[0] for name in places} >= {"cmdline", "environ", str(log), str(home / "syncbn.db")}
    assert [(name, place) for name, secret in secrets.items() for place, content in places.items() if secret.encode() in content] == []


def test_a_secret_that_was_left_would_be_found(tmp_path):
    """The test above can fail: in a file, on a command line, in an environment."""
    (tmp_path / "x.log").write_text("sbn_canary")
    environment = {**os.environ, MARK: str(tmp_path), "SECRET": "sbn_canary"}
    process = subprocess.Popen([sys.executable, "-c", "input()", "sbn_canary"], stdin=subprocess.PIPE, env=environment)
    try:
        _until(lambda: [place for place, content in _places(tmp_path, tmp_path / "x.log") if b"input()" in content], "the process")
        found = [place.partition(" of ")[0] for place, content in _places(tmp_path, tmp_path / "x.log") if b"sbn_canary" in content]
    finally:
        process.communicate(b"\n")
    assert {"cmdline", "environ", str(tmp_path / "x.log")} <= set(found)
