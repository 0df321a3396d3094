"""deploy/ without an engine: what compose would run, and a unit beside it, each on a host out of network namespaces.

Owns: reading commands, environments, secrets and health checks out of compose.yaml, the container files and the unit, and what stands for
an engine: places of the containers' file systems are directories of the test, and the programs are those of this environment. Users and
resource limits of containers are not imitated.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.support.hosts import ROOT, Host
from tests.support.postgres import binaries, unprivileged_user
from tests.support.serving import until

PROGRAMS = Path(sys.executable).parent
HEALTHY_S = 120.0
INTERVAL_S = 1.0
"""Between two looks at somebody's health, as an engine does it: a look is a process."""
NODE_STARTED = "Ray runtime started"
ONE_CPU = "--num-cpus=1"
SMALL = {
    # For a small and busy machine: no processes that wait for work, and patience.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_raylet_start_wait_time_s": "60",
}


class Deployment:
    """A copy of deploy/ in a directory. Use as a context manager inside of the hosts; leaving it ends every process on them."""

    def __init__(self, directory: Path, hosts: Sequence[Host]) -> None:
        self._directory = directory
        self._hosts = hosts
        self._deploy = directory / "deploy"
        shutil.copytree(ROOT / "deploy", self._deploy)
        self._compose = yaml.safe_load((self._deploy / "compose" / "compose.yaml").read_text())
        self._etc = directory / "etc"
        self._make_secrets()
        (directory / "storage").mkdir()
        # Short, because Ray makes Unix sockets below it. The hosts share it, as machines do not: nodes that start at once would take each
        # other's names there, so one is started after the other.
        self._temporary = Path(tempfile.mkdtemp(prefix="syncbn-", dir="/tmp"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def start(self, service: str, host: Host, *more: str) -> subprocess.Popen[bytes]:
        """Start a service of compose.yaml that is built here, with more arguments, and return when its health check passes."""
        described = self._compose["services"][service]
        image = _Image(ROOT / described["build"]["dockerfile"])
        command = [*image.entry, *described.get("command", image.command), *more]
        environment = self._environment(host, image.environment | described["environment"] | SMALL)
        check = described.get("healthcheck", {}).get("test", ["CMD", *image.health])[1:]
        return self._started(host, self._here(host, command), environment, check, NODE_STARTED)

    def start_unit(self, name: str, host: Host, settings: str, says: str) -> subprocess.Popen[bytes]:
        """Start a unit of systemd/ with an environment file of these lines, and return when it says something."""
        unit = (self._deploy / "systemd" / f"{name}.service").read_text()
        given = dict(shlex.split(line)[0].split("=", 1) for line in settings.splitlines())
        fixed = dict(word.split("=", 1) for line in re.findall(r"^Environment=(.*)$", unit, re.MULTILINE) for word in line.split())
        [line] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        words = [part for word in line.split() for part in (given[word[1:]].split() if word.startswith("$") else [word])]
        return self._started(host, self._here(host, words), self._environment(host, fixed | given | SMALL), says=says)

    def start_postgres(self, host: Host) -> None:
        """Start PostgreSQL as its image does with the service's environment: passwords are asked for from everywhere."""
        described = self._compose["services"]["postgres"]
        asked = described["environment"]
        user, programs = pwd.getpwnam(unprivileged_user() or pwd.getpwuid(os.getuid()).pw_name), binaries()
        data = self._temporary / "postgres"
        data.mkdir()
        password = data / "password"
        password.write_text(Path(self._here(host, [asked["POSTGRES_PASSWORD_FILE"]])[0]).read_text())
        for path in (self._temporary, data, password):
            os.chown(path, user.pw_uid, user.pw_gid)
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        made = [programs / "initdb", "-D", data / "data", "-U", asked["POSTGRES_USER"], f"--pwfile={password}", "-A", "scram-sha-256"]
        assert host.run([*become, *made], self._log(host)) == 0, self._said(host)
        with (data / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        environment = {"PGPASSWORD": password.read_text().strip(), "PATH": f"{programs}:{os.environ['PATH']}"}
        served = [programs / "postgres", "-D", data / "data", "-k", data, "-c", "listen_addresses=*", "-c", "fsync=off"]
        check = [*described["healthcheck"]["test"][1:], "-h", "127.0.0.1"]
        self._started(host, [*become, *map(str, served)], environment, check)
        made = ["createdb", "-h", "127.0.0.1", "-U", asked["POSTGRES_USER"], asked["POSTGRES_DB"]]
        assert host.run(made, self._log(host), environment) == 0, self._said(host)

    def smoke(self, host: Host, url: str, token: str, timeout_s: float) -> str:
        """Run smoke.sh, as somebody on another machine who was given a token; return what it says."""
        environment = self._environment(host, {"SYNCBN_TOKEN": token})
        assert host.run([self._deploy / "smoke.sh", url], self._log(host), environment, timeout_s) == 0, self._said(host)
        return self._said(host)

    def ask_the_unit(self, host: Host, *arguments: str) -> str:
        """Run the CLI beside a controller that a unit started; return what it and the controller have said."""
        environment = self._environment(host, {"SYNCBN_HOME": "/var/lib/syncbn"})
        assert host.run(["syncbn", *arguments], self._log(host), environment) == 0, self._said(host)
        return self._said(host)

    def home(self, host: Host) -> Path:
        """Return the directory that is /var/lib/syncbn on a host."""
        return self._directory / f"home-{host.name}"

    def _make_secrets(self) -> None:
        """Do what compose.yaml says that is to be done first."""
        head = (self._deploy / "compose" / "compose.yaml").read_text().split("\nname:")[0]
        commands = [line.removeprefix("#   ") for line in head.splitlines() if line.startswith("#   ") and "docker" not in line]
        subprocess.run(["sh", "-euc", "\n".join(commands)], cwd=self._directory, check=True, timeout=30)
        # The same for the units, for their user's eyes only, as deploy/README.md has it.
        shutil.copytree(self._deploy / "compose" / "secrets", self._etc)
        for path in self._etc.iterdir():
            path.chmod(0o600)

    def _here(self, host: Host, words: Sequence[str]) -> list[str]:
        """Return words with the places of a container, or of the machine of a unit, replaced by those of the test."""
        places = {
            "/run/secrets": self._deploy / "compose" / "secrets",
            "/etc/syncbn": self._etc,
            "/var/lib/syncbn": self.home(host),
            "/storage": self._directory / "storage",
            "/opt/syncbn/bin": PROGRAMS,
            "controller-entrypoint.sh": self._deploy / "containers" / "controller-entrypoint.sh",
        }
        return [re.sub("|".join(map(re.escape, places)), lambda found: str(places[found[0]]), word) for word in words]

    def _environment(self, host: Host, given: Mapping[str, str]) -> dict[str, str]:
        self.home(host).mkdir(exist_ok=True)
        own = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self._temporary)}
        return dict(zip(given, self._here(host, list(given.values())), strict=True)) | own

    def _started(
        self, host: Host, command: Sequence[str], environment: Mapping[str, str], check: Sequence[str] = (), says: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a process and return when it has said something and its health check, if it has one, passes."""
        process = host.start(command, self._log(host), environment)
        what = f"{command} on {host.name}"
        until(lambda: process.poll() is not None or says in self._log(host).read_text(), HEALTHY_S, what)
        health = self._directory / f"{host.name}-health.log"
        deadline = time.monotonic() + HEALTHY_S
        while process.poll() is None and check and host.run(check, health, environment):
            assert time.monotonic() < deadline, f"waited {HEALTHY_S:.0f} s for {what} to be healthy: {self._said(host)}"
            time.sleep(INTERVAL_S)
        assert process.poll() is None, self._said(host)
        return process

    def _log(self, host: Host) -> Path:
        return self._directory / f"{host.name}.log"

    def _said(self, host: Host) -> str:
        return self._log(host).read_text()[-3000:]


class _Image:
    """What a container file says of how it is run."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        self.entry = self._list(text, r"^ENTRYPOINT (\[.*\])$")
        self.command = self._list(text, r"^CMD (\[.*\])$")
        self.health = self._list(text, r"^HEALTHCHECK .*CMD (\[.*\])$")
        words = [word for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE) for word in line.split()]
        self.environment: dict[str, str] = dict(word.split("=", 1) for word in words)

    @staticmethod
    def _list(text: str, pattern: str) -> list[Any]:
        found = re.findall(pattern, text, re.MULTILINE)
        return json.loads(found[-1]) if found else []
