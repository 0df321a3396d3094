"""The environment of a rank: what it reads, and what it exports for the communication libraries. The worker's only file with os.environ.

Owns names, units and ranges; decides nothing.
"""

import json
import os
from dataclasses import dataclass

FAMILY_VARIABLE = "SYNCBN_FAMILY"
"""Names the rank whose program or whose program's program this is."""


@dataclass(frozen=True)
class WorkerSettings:
    """Bounds on waiting, in seconds, and where data and storage profiles lie."""

    meet_timeout_s: float = 120.0
    """SYNCBN_MEET_TIMEOUT_S: longest wait for all ranks to meet at the start; above 0."""
    collective_timeout_s: float = 300.0
    """SYNCBN_COLLECTIVE_TIMEOUT_S: longest wait for the peers in one collective; above the longest pause of any rank."""
    park_timeout_s: float = 3600.0
    """SYNCBN_PARK_TIMEOUT_S: longest wait of a rank that lost a peer for the controller to replace it; above 0."""
    batch_timeout_s: float = 300.0
    """SYNCBN_BATCH_TIMEOUT_S: longest wait of a step for its batch; above the time that one process takes to load one."""
    data_roots: tuple[str, ...] = ()
    """SYNCBN_DATA_ROOTS: JSON list of directories and URI prefixes that data.path may lie under; none: wherever this process may read."""
    data_cache: str = ""
    """SYNCBN_DATA_CACHE: directory for this node's copies of data from object stores; empty: one below that for temporary files."""
    storage_profiles: str = ""
    """SYNCBN_STORAGE_PROFILES: TOML file of the named ways into object stores; empty where there is none."""


def read_settings() -> WorkerSettings:
    """Read the settings from the environment.

    Raises:
        ValueError: naming the variable, its value and what was expected.
    """
    defaults = WorkerSettings()
    return WorkerSettings(
        meet_timeout_s=_seconds("SYNCBN_MEET_TIMEOUT_S", defaults.meet_timeout_s),
        collective_timeout_s=_seconds("SYNCBN_COLLECTIVE_TIMEOUT_S", defaults.collective_timeout_s),
        park_timeout_s=_seconds("SYNCBN_PARK_TIMEOUT_S", defaults.park_timeout_s),
        batch_timeout_s=_seconds("SYNCBN_BATCH_TIMEOUT_S", defaults.batch_timeout_s),
        data_roots=_directories("SYNCBN_DATA_ROOTS"),
        data_cache=os.environ.get("SYNCBN_DATA_CACHE", ""),
        storage_profiles=os.environ.get("SYNCBN_STORAGE_PROFILES", ""),
    )


def read_secret(variable: str) -> str:
    """Return what an environment variable holds that a storage profile names, empty where it is not set. Never shown or stored."""
    return os.environ.get(variable, "")


def export_interface(name: str) -> None:
    """Tell gloo and NCCL which network interface to use. They read it when a process group is made."""
    os.environ["GLOO_SOCKET_IFNAME"] = name
    os.environ["NCCL_SOCKET_IFNAME"] = name
    # CleanUpOnly: a failed collective is given up. The default ends the process, and with it the state that training goes on from.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")


def export_family(mark: str) -> None:
    """Mark every program that this process starts from now on as its own; see worker/family.py."""
    os.environ[FAMILY_VARIABLE] = mark


def export_rank(rank: int, world_size: int, store_host: str, store_port: int) -> None:
    """Tell user code, and libraries that ask, who this process is, in the words of torchrun.

    A rank sees its own GPU and no other, as if it had a node for itself: so LOCAL_RANK is 0, which is its device's number, and GROUP_RANK
    is RANK. The group is made already when user code runs; at MASTER_ADDR and MASTER_PORT is the store at which its ranks met.
    """
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
        GROUP_RANK=str(rank),
        GROUP_WORLD_SIZE=str(world_size),
        MASTER_ADDR=store_host,
        MASTER_PORT=str(store_port),
    )


def _directories(name: str) -> tuple[str, ...]:
    raw = os.environ.get(name, "")
    try:
        found = json.loads(raw) if raw else []
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(path, str) and path.startswith(("/", "s3://", "gs://")) for path in found):
        raise ValueError(f'{name} is {raw!r}; expected a JSON list of absolute paths and URIs; write it like ["/data", "s3://lake/photos"]')
    return tuple(found)


def _seconds(name: str, default: float) -> float:
    raw = os.environ.get(name, "")
    if not raw:
        return default
    try:
        seconds = float(raw)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} is {raw!r}; expected a number of seconds above 0; unset it for the default of {default:g}")
    return seconds
