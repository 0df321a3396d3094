"""Real object stores on the loopback, each in a process of its own: moto's S3 server, and one that speaks Google's language. Started once,
asked by pyarrow like any other.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from worker.storage.opening import open_storage
from worker.storage.storage import Storage

BUCKET = "checkpoints"
START_TIMEOUT_S = 60.0
SCHEMES = ("s3", "gs")

S3_SERVER = """
import logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
import sys
sys.stdin.read()
"""
SERVERS = {"s3": ["-c", S3_SERVER], "gs": ["-m", "tests.support.google_server", BUCKET]}
CREDENTIALS = {
    "s3": 'region = "us-east-1"\naccess_key_env = "TEST_ACCESS_KEY"\nsecret_key_env = "TEST_SECRET_KEY"\n',
    "gs": "anonymous = true\n",
}


@dataclass(frozen=True)
class ObjectStore:
    """The server, and the profile by which it is reached."""

    scheme: str
    endpoint: str
    profiles: Path
    environment: dict[str, str]
    """What a process that uses the profile needs."""
    pid: int

    def address(self) -> str:
        """A new place in the bucket, which nobody has used."""
        return f"{self.scheme}://{BUCKET}/{uuid.uuid4().hex}?profile=test"

    def open(self, address: str) -> Storage:
        """The storage at an address, as a process with the environment of the profile has it."""
        return open_storage(address)

    def at_hand(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Have its profile and credentials in the environment, where an operator has them."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self

    def die(self) -> None:
        """Be killed."""
        os.kill(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def running_object_store(scheme: str, directory: Path) -> Iterator[ObjectStore]:
    """Run a server as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, *SERVERS[scheme]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        what = f"the server of {scheme}://"
        assert select.select([process.stdout], [], [], START_TIMEOUT_S)[0], f"{what} did not start within {START_TIMEOUT_S} s"
        endpoint = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        profiles = directory / "profiles.toml"
        profiles.write_text(f'[test]\nendpoint = "{endpoint}"\n{CREDENTIALS[scheme]}')
        environment = {"SYNCBN_STORAGE_PROFILES": str(profiles), "TEST_ACCESS_KEY": "key", "TEST_SECRET_KEY": "very-secret"}
        if scheme == "s3":
            _make_bucket(endpoint)
        yield ObjectStore(scheme, endpoint, profiles, environment, process.pid)
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(20)


def _make_bucket(endpoint: str) -> None:
    from pyarrow import fs

    store = fs.S3FileSystem(
        access_key="key", secret_key="very-secret", endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True
    )
    store.create_dir(BUCKET)
