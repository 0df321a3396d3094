"""The checks of `syncbn doctor` that reach for something outside this machine's installation: the controller, the storage, other nodes."""

import ipaddress
import socket
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

import psutil

from service.cli.finding import Finding
from service.client import AddressError, Client, ClientError, Denied, ServiceError, Unreachable
from service.client.patience import Patience
from service.policy import PolicyError, PolicyFile
from service.settings import Settings
from worker.storage.opening import open_storage
from worker.storage.profiles import StorageConfigError

TIMEOUT_S: Final = 5.0
MAX_SKEW_S: Final = 5.0
"""Expiry of tokens and the times of events are the controller's; of HTTP's times the resolution is 1 s."""


def controller(_: Settings) -> Finding:
    """Ask the controller something that needs the token."""
    try:
        with _client() as client:
            list(client.jobs(limit=1))
            return Finding("controller", "ok", f"{client.url} answers and admits the token")
    except Unreachable as error:
        return Finding("controller", "warn", str(error), "start one with `syncbn serve`, or set SYNCBN_URL")
    except AddressError as error:
        return Finding("controller", "fail", str(error), "mend SYNCBN_URL or SYNCBN_TOKEN")
    except Denied as error:
        return Finding("controller", "fail", error.detail, "set SYNCBN_TOKEN, or unset it to use the token of the home")
    except ServiceError as error:
        return Finding("controller", "fail", error.detail, "see the controller's log")


def service_version(_: Settings) -> Finding:
    """Compare the controller's version with this one."""
    ours = version("syncbn")
    try:
        with _client() as client:
            theirs = str(client.describe()["info"]["version"])
            url = client.url
    except (ClientError, KeyError, TypeError):
        return Finding("version", "ok", f"{ours} here; no controller to compare with")
    if theirs == ours:
        return Finding("version", "ok", f"{ours}, here and at {url}")
    return Finding(
        "version", "warn", f"{ours} here, {theirs} at {url}", f"pip install 'syncbn[service]=={theirs}', or upgrade the controller"
    )


def clock(_: Settings) -> Finding:
    """Compare the controller's clock with this one."""
    try:
        with _client() as client:
            ahead_s = client.clock_ahead_s()
    except (ClientError, ValueError):
        return Finding("clock", "ok", "no controller to compare with")
    found = f"the controller's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this one"
    if abs(ahead_s) > MAX_SKEW_S:
        return Finding("clock", "warn", found, "have both follow a time server: timedatectl set-ntp true")
    return Finding("clock", "ok", f"within {MAX_SKEW_S:.0f} s of the controller's")


def storage(settings: Settings) -> Finding:
    """Ask the storage something."""
    try:
        # A name that no controller gives: nothing is there, and the answer is the proof.
        open_storage(settings.storage_url).is_marked("doctor")
    except StorageConfigError as error:
        return Finding("storage", "fail", str(error), "mend SYNCBN_STORAGE or the file that SYNCBN_STORAGE_PROFILES names")
    except OSError as error:
        remedy = "look at the bucket's name, the profile's endpoint and its credentials, from this machine and from every node"
        return Finding("storage", "fail", f"{settings.storage_url}: {error}", remedy)
    return Finding("storage", "ok", f"{settings.storage_url} answers" if settings.storage_path is None else str(settings.storage_path))


def policy(settings: Settings) -> Finding:
    """Read the operator's policy file as the controller does."""
    if not settings.policy_path.exists():
        remedy = "write it, or unset SYNCBN_POLICY"
        return Finding("policy", "fail" if settings.policy else "ok", f"no {settings.policy_path}", remedy if settings.policy else "")
    try:
        PolicyFile(settings.policy_path)
    except PolicyError as error:
        return Finding("policy", "fail", str(error), "mend the file: a controller refuses to start with it")
    return Finding("policy", "ok", str(settings.policy_path))


def interface(settings: Settings) -> Finding:
    """Find the network interface on which ranks here meet those of other nodes: the one that leads to Ray's head."""
    if not settings.ray_address:
        return Finding("interface", "ok", "an embedded Ray: ranks meet on the loopback")
    parts = urlsplit(f"//{settings.ray_address}")
    try:
        head = socket.getaddrinfo(parts.hostname, parts.port or 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(head[0], socket.SOCK_DGRAM) as probe:
            probe.connect(head[4])  # of a datagram socket: asks the routing table, sends nothing
            address = probe.getsockname()[0]
    except OSError as error:
        remedy = "look at SYNCBN_RAY_ADDRESS, expected host:port, and at this machine's routes"
        return Finding("interface", "fail", f"no way to {settings.ray_address}: {error}", remedy)
    name = next(
        (name for name, found in psutil.net_if_addrs().items() if address in {one.address.partition("%")[0] for one in found}), None
    )
    found = f"{address} on {name or 'no interface'}, towards {settings.ray_address}"
    if name is None or (ipaddress.ip_address(address).is_loopback and not ipaddress.ip_address(head[4][0]).is_loopback):
        return Finding("interface", "warn", found, "give the node an address that others reach: ray start --node-ip-address=ADDRESS")
    return Finding("interface", "ok", found)


def _client() -> Client:
    return Client(timeout_s=TIMEOUT_S, patience=Patience(tries=1))
