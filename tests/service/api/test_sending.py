"""Tests of service/api/sending.py behind a real server: what the kernel sends, and what is found out before the last byte."""

import hashlib
import os
import random
from typing import NamedTuple

import httpx
import pytest

from service import reading
from service.cli import zerocopy
from tests.service.api.served import served

SIZE = 16_000_000
"""More than a socket takes by itself."""


class Site(NamedTuple):
    """A served checkpoint of one large file, and what was sent by the kernel and digested so far."""

    world: object
    url: str
    path: object
    content: bytes
    sent: list
    digested: list


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A file that was written a while ago."""
    sent, digested = [], []
    kernel_sends, begins = os.sendfile, hashlib.sha256

    def sendfile(*where):
        sent.append(kernel_sends(*where))
        return sent[-1]

    class Digest:
        def __init__(self, content=b""):
            self._digest = begins(content)

        def update(self, chunk):
            digested.append(len(chunk))
            self._digest.update(chunk)

        def hexdigest(self):
            return self._digest.hexdigest()

    monkeypatch.setattr(reading, "SETTLED_S", -1.0)
    with served(tmp_path) as world:
        content = random.Random(7).randbytes(SIZE)
        job_id = world.start()
        files = {"model.safetensors": {"size": SIZE, "sha256": hashlib.sha256(content).hexdigest()}}
        world.checkpoint(job_id, 10, seq=1, files=files)
        path = world.directory(job_id, 10) / "model.safetensors"
        path.write_bytes(content)
        monkeypatch.setattr(zerocopy.os, "sendfile", sendfile)
        monkeypatch.setattr(reading.hashlib, "sha256", Digest)
        yield Site(world, f"/v1/jobs/{job_id}/checkpoints/10/files/model.safetensors", path, content, sent, digested)


def test_the_kernel_sends_the_file_and_its_digest_is_taken_once(site):
    """All but the end, which is held back; the second reader waits for no digest."""
    for _ in range(2):
        site.sent.clear()
        answer = site.world.client.get(site.url)
        assert answer.status_code == 200
        assert answer.content == site.content
        assert 0.9 * SIZE < sum(site.sent) < SIZE
    assert sum(site.digested) == SIZE


def test_the_kernel_sends_ranges_and_the_files_of_archives(site):
    """The same bytes as ever, at their places."""
    part = site.world.client.get(site.url, headers={"Range": "bytes=1000-15000000"})
    assert (part.status_code, part.content) == (206, site.content[1000:15_000_001])
    assert sum(site.sent) > 14_000_000
    site.sent.clear()
    archive = site.world.client.get(site.url.rpartition("/files")[0] + "/archive")
    assert site.content in archive.content
    assert len(archive.content) == int(archive.headers["content-length"])
    assert sum(site.sent) > 0.9 * SIZE


def _get(site, meanwhile):
    """Download the file; do something once the first bytes are here."""
    with site.world.client.stream("GET", site.url) as answer:
        received = answer.iter_raw()
        next(received)
        meanwhile()
        for _ in received:
            pass


@pytest.mark.parametrize("is_known", [False, True])
def test_a_file_that_is_written_to_while_the_kernel_sends_it_breaks_off(site, is_known):
    """Whether its digest was found right before or is being taken."""

    def write():
        with site.path.open("r+b") as file:
            file.seek(SIZE - 1)
            file.write(bytes([site.content[-1] ^ 1]))

    if is_known:
        _get(site, lambda: None)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        _get(site, write)


def test_a_file_that_becomes_shorter_while_the_kernel_sends_it_breaks_off(site):
    """No client takes what came for the whole."""
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        _get(site, lambda: os.truncate(site.path, SIZE - 1_000_000))
