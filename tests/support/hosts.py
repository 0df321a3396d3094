"""Hosts and the switch between them, out of Linux network namespaces: for tests of what happens across machines.

Owns: making them, starting processes inside, cutting a cable, killing a host, and removing everything, also what an earlier run left that
was killed. Hosts share the file system, the processors and the clock; each has a network, a name and an /etc/hosts of its own. The switch
is a namespace too, so that no packet and no interface comes into the network of the machine.

Every host is made with a trap that real ones have: besides its address it has one that every other host has as well, as Docker's bridge
does. Where hosts do not know each other by name there is a second one: a host's own name means 127.0.0.1.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ETC = Path("/etc/netns")
PREFIX = "syncbn"
INTERFACE = "eth0"
DECOY, DECOY_ADDRESS = "docker0", "172.17.0.1"
COMMAND_TIMEOUT_S = 10.0
EXIT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Host:
    """One host. `namespace` is its network, `switch` the namespace where its cable ends."""

    name: str
    namespace: str
    switch: str
    address: str

    def start(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process on the host, at the root of the sources; the pid is the command's own."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *named, *map(str, command)],
                cwd=ROOT, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def run(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> int:
        """Run a process on the host to its end and return its exit status; what it leaves in the background stays."""
        process = self.start(command, log, environment)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(EXIT_TIMEOUT_S)
            raise

    def pids(self) -> list[int]:
        """Return the living processes of the host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """End every process of the host at once, as a crash does. Its network stays: peers see their connections closed."""
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while pids := self.pids():
            assert time.monotonic() < deadline, f"processes {pids} of {self.namespace} do not end"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def cut(self) -> None:
        """Cut the cable: what is sent arrives nowhere, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.name, "down")

    def received_bytes(self, interface: str = INTERFACE) -> int:
        """Return how much an interface has received since it was made."""
        shown = _ip("-n", self.namespace, "-s", "-o", "link", "show", "dev", interface)
        found = re.search(r"RX:[^\\]*\\\s*(\d+)", shown)
        assert found is not None, shown
        return int(found[1])


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts that do not know each other by name; in the end, end every process on them and remove them."""
    with switched_hosts("left", "right") as (left, right):
        yield left, right


@contextmanager
def switched_hosts(*names: str, are_known: bool = False) -> Iterator[tuple[Host, ...]]:
    """Make hosts on one switch; in the end, end every process on them and remove them.

    Args:
        names: of letters and digits, at most 15.
        are_known: every host knows every name, its own too, by address: as containers of one network do.
    """
    remove_leftovers()
    made = f"{PREFIX}-{os.getpid()}"
    switch = f"{made}-switch"
    hosts = tuple(Host(name, f"{made}-{name}", switch, f"10.231.0.{number}") for number, name in enumerate(names, 1))
    known = "".join(f"{host.address} {host.name}\n" for host in hosts)
    try:
        _ip("netns", "add", switch)
        _configure(switch, "link add bridge type bridge", "link set bridge up")
        for host in hosts:
            _make(host, known if are_known else f"127.0.0.1 {host.name}\n")
        yield hosts
    finally:
        for namespace in [*(host.namespace for host in hosts), switch]:
            _remove(namespace)


def why_not() -> str | None:
    """Return why no hosts can be made here, or None where they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if missing := [program for program in ("ip", "unshare", "hostname") if shutil.which(program) is None]:
        return f"not found: {', '.join(missing)}; install iproute2, util-linux and hostname"
    remove_leftovers()
    name = f"{PREFIX}-{os.getpid()}-trial"
    try:
        _ip("netns", "add", name)
        _configure(name, "link add bridge type bridge", "link add here type veth peer name there")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are refused here: {error.stderr.strip()}"
    finally:
        _remove(name)
    return None


def remove_leftovers() -> None:
    """Remove the hosts of test runs that are gone, with every process on them."""
    names = {line.split()[0] for line in _ip("netns", "list").splitlines() if line} | {path.name for path in ETC.glob(f"{PREFIX}-*")}
    for name in names:
        found = re.fullmatch(rf"{PREFIX}-(\d+)-\w+", name)
        if found and not Path("/proc", found[1]).exists():
            _remove(name)


def _make(host: Host, names: str) -> None:
    directory = ETC / host.namespace
    directory.mkdir(parents=True)
    # `ip netns exec` shows this file to the processes inside as /etc/hosts.
    (directory / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
    _ip("netns", "add", host.namespace)
    _configure(
        host.namespace,
        "link set lo up",
        # Before the real interface, which who takes the first one then does not find.
        f"link add {DECOY} type bridge",
        f"addr add {DECOY_ADDRESS}/16 dev {DECOY}",
        f"link set {DECOY} up",
        f"link add {INTERFACE} type veth peer name {host.name} netns {host.switch}",
        f"addr add {host.address}/24 dev {INTERFACE}",
        f"link set {INTERFACE} up",
    )
    _configure(host.switch, f"link set {host.name} master bridge", f"link set {host.name} up")


def _remove(namespace: str) -> None:
    """Remove a namespace, whatever there is of it. The interfaces in it go with it."""
    if Path("/run/netns", namespace).exists():
        Host("", namespace, "", "").kill()
        _ip("netns", "delete", namespace)
    shutil.rmtree(ETC / namespace, ignore_errors=True)


def _configure(namespace: str, *lines: str) -> None:
    _ip("-n", namespace, "-batch", "-", lines="\n".join(lines))


def _ip(*arguments: str, lines: str = "") -> str:
    command = ["ip", *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True).stdout
