"""`syncbn serve`, `down` and `doctor` as processes: one controller a home, clear refusals, an orderly end. Without a Ray."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from service.cli.home import HomeInUseError, claimed, holder
from service.client import Client
from service.settings import Home
from tests.support.live_service import SPEC

COMMAND = [sys.executable, "-m", "service.cli.main"]
NO_RAY = "127.0.0.1:9"


@pytest.fixture
def home(tmp_path):
    """A home that is not there yet."""
    return tmp_path / "home"


@pytest.fixture
def environment(home):
    """The environment of somebody who set SYNCBN_HOME and nothing else of ours."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("SYNCBN_")}, "SYNCBN_HOME": str(home)}


@pytest.fixture
def serve(home, environment):
    """Start controllers, and end those that the test left."""
    started = []

    def start(*args, stdout=subprocess.PIPE):
        command = [*COMMAND, "serve", "--port", "0", "--ray-address", NO_RAY, *args]
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(environment):
    """Run a command to its end."""
    return lambda *args: subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_the_address_with_the_token_is_shown_once(serve, home):
    """At first start I get a link to open on my screen; later only the address, because the token is in my home."""
    master, screen = os.openpty()
    first = serve(stdout=screen)
    os.close(screen)
    with os.fdopen(master, encoding="utf-8") as terminal:
        url, _, token = terminal.readline().strip().partition("/#token=")
    assert json.loads((home / "controller.json").read_text()) == {"url": url, "pid": first.pid}
    assert (home / "token").read_text().strip() == token
    assert (home / "token").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    first.terminate()
    assert first.wait(15) == 0
    assert not (home / "controller.json").exists()
    again = serve()
    assert "token" not in again.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_seconds_also_with_an_open_stream(serve, home, number):
    """Somebody watches a job while I stop the controller: it stops all the same, with status 0 and without a traceback."""
    controller = serve()
    controller.stdout.readline()
    with Client(home=home) as client:
        url = f"{client.url}/v1/jobs/{client.submit(SPEC)['id']}/events"
        headers = {"Authorization": f"Bearer {(home / 'token').read_text().strip()}", "Accept": "text/event-stream"}
        with httpx.stream("GET", url, headers=headers) as stream:
            next(stream.iter_lines())
            began = time.monotonic()
            controller.send_signal(number)
            _, errors = controller.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert controller.returncode == 0
    assert "Traceback" not in errors


def test_a_second_controller_on_a_home_is_refused(serve, home):
    """Two controllers on one home would fight: the second is told who is there, and the first does not notice."""
    first = serve()
    url = first.stdout.readline().strip()
    second = serve()
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert out == ""
    assert f"a controller runs on the home {home} already: pid {first.pid} at {url}; use it, stop it with `syncbn down`" in " ".join(
        errors.split()
    )
    assert first.poll() is None


def test_a_controller_that_was_killed_does_not_lock_its_home(serve, home):
    """SIGKILL leaves a note and a lock file; neither keeps the next one away."""
    first = serve()
    first.stdout.readline()
    first.kill()
    first.wait()
    assert serve().stdout.readline().startswith("http://127.0.0.1:")


def test_down_ends_the_controller_and_is_repeatable(serve, run, home):
    """`syncbn down` ends it; with nothing there it says so, also on a home that never was."""
    assert run("down", "--json").returncode == 0
    assert not home.exists()
    controller = serve()
    controller.stdout.readline()
    assert json.loads(run("down", "--json").stdout)["controller_pid"] == controller.pid
    assert controller.wait(5) == 0
    assert json.loads(run("down", "--json").stdout)["controller_pid"] is None


def test_a_taken_port_is_named(run, home):
    """The port is somebody else's: which one, and how to choose another; exit code 2 and no half-started controller."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("serve", "--port", str(port))
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port" in result.stderr
    assert holder(Home(home)) is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--port", "70000"), "port is 70000"),
        (("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1"),
        (("--home", "/proc/nowhere"), "the home /proc/nowhere cannot be used"),
        (("--storage", "ftp://bucket"), "ftp://bucket is not supported"),
        (("--storage", "s3://bucket?profile=team"), "SYNCBN_STORAGE_PROFILES is not set here"),
        (("--port", "many"), "Invalid value for '--port'"),
    ],
)
def test_settings_that_cannot_be_are_explained(run, args, expected):
    """Every refusal names the value and is exit code 2."""
    result = run("serve", *args)
    assert result.returncode == 2, result.stderr
    assert expected in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_home_is_held_by_one(tmp_path):
    """The lock is let go of with its holder."""
    home = Home(tmp_path)
    with claimed(home):
        assert holder(home) == os.getpid()
        with pytest.raises(HomeInUseError, match=f"pid {os.getpid()}"), claimed(home, patience_s=0):
            pass
    assert holder(home) is None
    with claimed(home):
        pass


def test_doctor_finds_nothing_wrong_here(run):
    """Every check has a line; none fails where the tests run."""
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["status"]) == (0, "ok"), report
    assert {check["check"] for check in report["checks"]} >= {"python", "torch", "ray", "home", "port", "controller"}
    assert next(check["found"] for check in report["checks"] if check["check"] == "controller").startswith("no service answers")


def test_doctor_says_how_to_mend_what_is_broken(run, environment):
    """A taken port, an unusable home, a token that opens nothing: exit code 1, and a remedy for each."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        environment |= {"SYNCBN_PORT": str(other.getsockname()[1]), "SYNCBN_HOME": "/proc/nowhere"}
        result = run("doctor", "--json")
    failed = {check["check"]: check["remedy"] for check in json.loads(result.stdout)["checks"] if check["status"] == "fail"}
    assert result.returncode == 1
    assert failed.keys() == {"port", "home"}
    assert "SYNCBN_PORT" in failed["port"]
    assert "SYNCBN_HOME" in failed["home"]


def test_a_token_is_not_written_where_stdout_is_a_file(serve, home):
    """A journal is read by others; the address is there, and where the token is."""
    controller = serve()
    url = controller.stdout.readline()
    controller.terminate()
    said = url + "".join(controller.communicate(timeout=60))
    assert (home / "token").read_text().strip() not in said
    assert str(home / "token") in said


def test_other_machines_are_not_served_before_there_is_a_token(run, serve, home):
    """`tokens init` makes it, and the controller takes it."""
    refused = run("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "syncbn tokens init" in re.sub(r"\s+", " ", refused.stderr)
    assert not (home / "syncbn.db").exists()

    token = run("tokens", "init").stdout.strip()
    assert (home / "token").stat().st_mode & 0o777 == 0o600
    assert "is there already" in re.sub(r"\s+", " ", run("tokens", "init").stderr)
    controller = serve("--host", "0.0.0.0")
    url = controller.stdout.readline().strip()
    with Client(url, token) as client:
        assert list(client.jobs()) == []


def test_logs_are_json_lines_where_asked(serve, environment):
    """A log collector gets one object a line, ours and those of libraries alike."""
    environment["SYNCBN_LOG_FORMAT"] = "json"
    process = serve()
    seen = set()
    while not {"listening", "cluster_not_reached"} <= seen:
        line = json.loads(process.stderr.readline())
        assert {"event", "level", "timestamp"} <= set(line)
        seen.add(line["event"])


def test_a_wrong_policy_file_is_refused_at_the_start(home, environment):
    """Before anything runs without the limits that were meant."""
    home.mkdir()
    (home / "policy.toml").write_text("[[quotas]]\nlable = 'team'\n")
    done = subprocess.run([*COMMAND, "serve", "--port", "0"], env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "quotas.0.lable is 'team'" in " ".join(done.stderr.split())
