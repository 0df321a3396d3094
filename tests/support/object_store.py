"""A real S3 server on the loopback, in a process of its own: moto's. Started once, asked by pyarrow like any other."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.storage.opening import open_storage
from worker.storage.storage import Storage

BUCKET = "checkpoints"
START_TIMEOUT_S = 60.0

SERVER = """
import logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
import sys
sys.stdin.read()
"""


@dataclass(frozen=True)
class ObjectStore:
    """The server, and the profile by which it is reached."""

    endpoint: str
    profiles: Path
    environment: dict[str, str]
    """What a process that uses the profile needs."""

    def address(self) -> str:
        """A new place in the bucket, which nobody has used."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex}?profile=test"

    def open(self, address: str) -> Storage:
        """The storage at an address, as a process with the environment of the profile has it."""
        return open_storage(address)


@contextlib.contextmanager
def running_object_store(directory: Path) -> Iterator[ObjectStore]:
    """Run the server as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert select.select([process.stdout], [], [], START_TIMEOUT_S)[0], f"the S3 server did not start within {START_TIMEOUT_S} s"
        endpoint = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        profiles = directory / "profiles.toml"
        profiles.write_text(
            f'[test]\nendpoint = "{endpoint}"\nregion = "us-east-1"\n'
            'access_key_env = "TEST_ACCESS_KEY"\nsecret_key_env = "TEST_SECRET_KEY"\n'
        )
        environment = {"SYNCBN_STORAGE_PROFILES": str(profiles), "TEST_ACCESS_KEY": "key", "TEST_SECRET_KEY": "very-secret"}
        _make_bucket(endpoint)
        yield ObjectStore(endpoint, profiles, environment)
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
