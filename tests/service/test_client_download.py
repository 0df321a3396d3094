"""Downloads over a network and from a service that misbehave: resumed where that is right, refused where it is not."""

import fcntl
import hashlib
import json

import pytest

from service.client import BadRequest, Client, DownloadError, IntegrityError, NotFound
from service.client.patience import Patience
from tests.support.unsteady import CONTENT, MANIFEST, SHA256, serving


@pytest.fixture
def service():
    """A service for one test."""
    with serving() as service:
        yield service


@pytest.fixture
def download(service, tmp_path):
    """Download the checkpoint into a directory, without waiting long between tries."""

    def run():
        with Client(service.url, "t", patience=Patience(tries=3, first_wait_s=0.001)) as client:
            return client.download("job_1", "best", tmp_path / "c")

    return run


@pytest.fixture
def target(tmp_path):
    """Where the file is to be."""
    (tmp_path / "c").mkdir()
    return tmp_path / "c" / "model.safetensors"


def _names(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_a_whole_file_arrives(download, target):
    """Nothing goes wrong: the file, and the manifest last."""
    download()
    assert target.read_bytes() == CONTENT
    assert json.loads((target.parent / "manifest.json").read_text()) == MANIFEST
    assert _names(target) == ["manifest.json", "model.safetensors"]


def test_dropped_connections_are_resumed_from_the_last_byte(service, download, target):
    """The connection breaks three times; every byte is fetched once."""
    service.drop_after = [1_000_000, 500_000, 7]
    download()
    assert target.read_bytes() == CONTENT
    assert service.ranges == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500007-"]


def test_an_answer_that_is_short_but_claims_to_be_whole_is_resumed(service, download, target):
    """A proxy cuts the file and mends the Content-Length: the manifest's size is what counts."""
    service.drop_after, service.lies_about_length = [10], True
    download()
    assert target.read_bytes() == CONTENT


def test_a_service_that_keeps_breaking_off_fails_loudly_and_keeps_the_part(service, download, target):
    """I get an error that says how far it came; the next run goes on from there."""
    service.drop_after = [2_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"stopped at 2000000 of 3000000 bytes .* run the download again"):
        download()
    assert _names(target) == ["model.safetensors.part"]
    service.ranges.clear()
    download()
    assert service.ranges == ["bytes=2000000-"]
    assert target.read_bytes() == CONTENT


def test_a_part_of_an_earlier_run_is_gone_on_with(service, download, target):
    """Yesterday's half is half of today's download."""
    target.with_name("model.safetensors.part").write_bytes(CONTENT[:1_234_567])
    download()
    assert service.ranges == ["bytes=1234567-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [b"\0" * 1000, b"\0" * len(CONTENT), b"\0" * (len(CONTENT) + 5)])
def test_a_damaged_part_is_replaced(service, download, target, damaged):
    """The part on my disk is not the beginning of the file: it is fetched anew, and the result is right."""
    target.with_name("model.safetensors.part").write_bytes(damaged)
    download()
    assert target.read_bytes() == CONTENT
    assert service.ranges[-1] is None


def test_a_whole_part_needs_no_network(service, download, target):
    """The last run died between the last byte and the rename."""
    target.with_name("model.safetensors.part").write_bytes(CONTENT)
    download()
    assert service.ranges == []
    assert target.read_bytes() == CONTENT


def test_corrupted_bytes_are_refused_and_deleted(service, download, target):
    """One flipped bit: an error naming file and digests, and no file that could be mistaken for good."""
    service.content = CONTENT[:99] + bytes([CONTENT[99] ^ 1]) + CONTENT[100:]
    with pytest.raises(IntegrityError, match=rf"model.safetensors arrived as SHA-256 \w+; expected the manifest's {SHA256}"):
        download()
    assert _names(target) == []


def test_a_file_that_changed_on_the_service_is_refused_before_it_is_fetched(service, download, target):
    """The ETag is another one than the manifest's: nothing is written."""
    service.etag = "0" * 64
    with pytest.raises(IntegrityError, match=f"is {'0' * 64} on the service now"):
        download()
    assert _names(target) == []


def test_a_file_that_changes_between_two_connections_is_not_glued_together(service, download, target):
    """Half of the old file and half of the new one never become one."""
    target.with_name("model.safetensors.part").write_bytes(CONTENT[:1000])
    service.etag = "1" * 64
    with pytest.raises(IntegrityError):
        download()
    assert _names(target) == []


def test_a_longer_file_is_refused(service, download, target):
    """More bytes than promised are not written to my disk without end."""
    service.content = CONTENT + b"more"
    with pytest.raises(IntegrityError, match="longer than the 3000000 bytes"):
        download()
    assert _names(target) == []


def test_a_service_without_ranges_sends_the_whole_file(service, download, target):
    """A proxy strips Range: the answer 200 starts the file anew."""
    service.ignores_ranges, service.drop_after = True, [1000]
    download()
    assert target.read_bytes() == CONTENT


def test_an_answer_to_another_range_is_refused(service, download, target):
    """The service sends other bytes than I asked for."""
    target.with_name("model.safetensors.part").write_bytes(CONTENT[:1000])
    service.content_range = "bytes 5-2999999/3000000"
    with pytest.raises(DownloadError, match="expected bytes from 1000"):
        download()


def test_a_file_that_is_whole_is_only_verified(service, download, target):
    """Running again costs a checksum and no traffic; a damaged file is mended."""
    download()
    service.ranges.clear()
    download()
    assert service.ranges == []
    target.write_bytes(b"\0" * len(CONTENT))
    download()
    assert target.read_bytes() == CONTENT


def test_another_checkpoint_replaces_this_one_and_is_never_mixed_with_it(service, download, target):
    """While a second checkpoint comes into the directory of a first, there is no manifest to say that it is whole."""
    download()
    service.manifest = {"step": 8, "files": {"model.safetensors": {"size": 10, "sha256": "0" * 64}}}
    with pytest.raises(IntegrityError):
        download()
    assert not (target.parent / "manifest.json").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", "manifest.json", "x.part", "", "a\n", ".hidden", "a" * 300])
def test_a_manifest_cannot_write_outside_the_directory(service, download, target, name):
    """A hostile service names files elsewhere: nothing is written."""
    service.manifest = {"step": 7, "files": {name: {"size": 1, "sha256": "0" * 64}}}
    with pytest.raises(IntegrityError, match="do not trust this service"):
        download()
    assert _names(target) == []
    assert service.ranges == []


def test_two_downloads_into_one_directory_do_not_mix(download, target):
    """The second one is told to wait."""
    with target.with_name("model.safetensors.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="being written by another download"):
            download()


def test_an_empty_file_is_a_file(service, download, target):
    """Zero bytes, the right digest."""
    service.manifest = {"step": 7, "files": {"model.safetensors": {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}}}
    download()
    assert target.read_bytes() == b""


def test_a_range_beyond_the_end_is_an_error(service, download, target):
    """The file on the service became shorter than my part."""
    service.content = CONTENT[:10]
    target.with_name("model.safetensors.part").write_bytes(CONTENT[:1000])
    with pytest.raises(BadRequest):
        download()


def test_progress_ends_at_the_size(service, tmp_path):
    """A bar that is fed with it ends full, and never goes beyond."""
    told = []
    with Client(service.url, "t") as client:
        client.download("job_1", "best", tmp_path / "c", lambda *args: told.append(args))
    assert told[-1] == ("model.safetensors", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_the_positive_twin_of_not_found():
    """The tree of errors: what a script catches to catch them all."""
    assert issubclass(IntegrityError, DownloadError)
    assert not issubclass(NotFound, DownloadError)
