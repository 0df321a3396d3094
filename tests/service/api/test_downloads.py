"""Tests of service/api/downloads.py, ranges.py, checkpoints.py and service/artifacts.py."""

import base64
import hashlib
import io
import json
import os
import struct
import tarfile

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from service.api.ranges import slice_of
from service.errors import RangeError
from tests.service.api.served import served
from tests.service.api.world import LAYERS, model
from worker.storage.tensors import Bytes, TensorFile, statistics_of


def test_checkpoints_are_listed_newest_first_with_best_and_latest(world):
    """An unhealthy one is never the best, however good its figures."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1, accuracy=0.8)
    world.checkpoint(job_id, 20, seq=2, accuracy=0.9, status="unhealthy")
    world.checkpoint(job_id, 30, seq=3, accuracy=0.7)
    page = world.client.get(f"/v1/jobs/{job_id}/checkpoints").json()
    rows = page["data"]

    assert [(row["step"], row["is_best"], row["is_latest"], row["health"]["status"]) for row in rows] == [
        (30, False, True, "healthy"),
        (20, False, False, "unhealthy"),
        (10, True, False, "healthy"),
    ]
    assert list(rows[0]) == [
        "step", "epoch", "created_at", "metrics", "health", "size_bytes", "files", "is_best", "is_latest", "pinned", "damaged",
    ]  # fmt: skip
    assert rows[0]["pinned"] is False
    assert rows[0]["size_bytes"] == sum(file["size"] for file in rows[0]["files"])
    assert [file["name"] for file in rows[0]["files"]] == ["model.safetensors", "training.json", "training.safetensors"]
    short = world.client.get(f"/v1/jobs/{job_id}/checkpoints?limit=2").json()
    assert (short["has_more"], short["next_cursor"]) == (True, "20")
    assert world.client.get(f"/v1/jobs/{job_id}/checkpoints?after=20").json()["data"] == rows[2:]


def test_a_checkpoint_is_found_by_number_latest_and_best(world):
    """Three names, one manifest."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1, accuracy=0.8)
    world.checkpoint(job_id, 30, seq=2, accuracy=0.7)
    step = lambda which: world.client.get(f"/v1/jobs/{job_id}/checkpoints/{which}").json().get("step")  # noqa: E731

    assert [step(which) for which in ("latest", "best", "10", "30", "0010")] == [30, 10, 10, 30, 10]
    for which in ("20", "9" * 15):
        assert world.client.get(f"/v1/jobs/{job_id}/checkpoints/{which}").json()["code"] == "checkpoint_not_found"


def test_a_job_without_checkpoints_has_no_best(world):
    """An empty list, and 404 in words."""
    job_id = world.submit()["id"]

    assert world.client.get(f"/v1/jobs/{job_id}/checkpoints").json() == {"data": [], "has_more": False, "next_cursor": None}
    for which in ("latest", "best"):
        assert world.client.get(f"/v1/jobs/{job_id}/checkpoints/{which}").json()["code"] == "checkpoint_not_found"


def test_a_whole_file_comes_with_digest_and_length(world, stored):
    """What a client needs to trust it."""
    _, data, url = stored
    answer = world.client.get(url)
    digest = hashlib.sha256(answer.content)

    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"' == f'"{data["files"]["model.safetensors"]["sha256"]}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["accept-ranges"] == "bytes"
    assert load(answer.content)["stem.norm.running_var"].tolist() == [1, 1, 1, 5]


def test_head_is_get_without_the_bytes(world, stored):
    """The same headers, by a real server too."""
    _, _, url = stored
    for path in (url, url.rsplit("/files", 1)[0] + "/archive"):
        got, head = world.client.get(path), world.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == got.headers
    # A range is a thing of GET alone.
    assert world.client.head(url, headers={"Range": "bytes=0-1"}).status_code == 200


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=5-9", 5, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None), ("bytes=3-999999999999", 3, None)],
)
def test_a_range_is_sent_as_206(world, stored, header, start, end):
    """One range, with its place in the whole."""
    whole = world.client.get(stored[2]).content
    answer = world.client.get(stored[2], headers={"Range": header})
    expected = whole[start:end]
    first = start if start >= 0 else len(whole) + start

    assert (answer.status_code, answer.content) == (206, expected)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(whole)}"
    assert answer.headers["content-length"] == str(len(expected))


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "bytes=5-2", "bytes=", "bytes=-", "items=0-1", "bytes=a-b", "bytes=1-2-3", "0-1"])
def test_several_ranges_or_none_get_the_whole_file(world, stored, header):
    """A range that is not understood is no reason to fail, and many are no way to make us work."""
    answer = world.client.get(stored[2], headers={"Range": header})

    assert (answer.status_code, answer.content) == (200, world.client.get(stored[2]).content)


@pytest.mark.parametrize("header", ["bytes=100000000-", "bytes=-0", f"bytes={'9' * 500}-"])
def test_a_range_outside_of_the_file_is_416(world, stored, header):
    """And says how long the file is."""
    size = len(world.client.get(stored[2]).content)
    answer = world.client.get(stored[2], headers={"Range": header})

    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{size}"


def test_a_resumed_download_is_never_of_another_file(world, stored):
    """If-Range with the digest goes on; with anything else it begins anew."""
    etag = world.client.get(stored[2]).headers["etag"]
    status = lambda tag: world.client.get(stored[2], headers={"Range": "bytes=5-", "If-Range": tag}).status_code  # noqa: E731

    assert status(etag) == 206
    assert [status(tag) for tag in ('"other"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT")] == [200] * 3


def test_conditional_requests_are_honoured(world, stored):
    """304 for who has it, 412 for who wants another."""
    etag = world.client.get(stored[2]).headers["etag"]
    get = lambda **headers: world.client.get(stored[2], headers={name.replace("_", "-"): value for name, value in headers.items()})  # noqa: E731
    unchanged = get(If_None_Match=f'"x", W/{etag}')

    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert get(If_None_Match='"x"').status_code == 200
    assert get(If_Match='"x"').status_code == 412
    assert get(If_Match=etag).status_code == 200


def test_the_manifest_can_be_downloaded_as_a_file(world, stored):
    """It lists itself nowhere, and is there."""
    answer = world.client.get(stored[2].replace("model.safetensors", "manifest.json"))

    assert answer.json() == stored[1]
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'


@pytest.mark.parametrize(
    "name",
    [
        "nope", "...", ".", "%2e%2e", "..%2fmodel.safetensors", "%2e%2e%2f%2e%2e%2fsecret", "%2Fetc%2Fpasswd", "model.safetensors%00",
        "model.safetensors%00.json", "model.safetensors/..", "..%5csecret", "model.safetensors%3f", "model.safetensors%23", "secret",
        "%252e%252e%252fsecret", "//proc/self/root/etc/passwd", "\u2025\u2215secret", "model.safetensors ", "MODEL.SAFETENSORS", "x" * 3000,
    ],
)  # fmt: skip
def test_no_name_leads_out_of_the_checkpoint(world, stored, name):
    """Only what the manifest lists."""
    job_id = stored[0]
    (world.directory(job_id, 10) / "secret").write_text("secret")
    (world.directory(job_id, 10).parent / "secret").write_text("secret")
    answer = world.client.get(stored[2].replace("model.safetensors", name))

    assert answer.status_code == 404
    assert "secret" not in answer.text.replace(name, "").replace("'secret'", "").replace("secret' is not", "")


def test_a_manifest_that_lists_a_way_out_leads_nowhere(world):
    """Not even a rank that lies can have other files read."""
    job_id = world.start()
    entry = {"size": 6, "sha256": "0" * 64}
    world.checkpoint(job_id, 10, seq=1, files={"../secret": entry, "link.bin": entry, "fifo.bin": entry})
    (world.directory(job_id, 10).parent / "secret").write_text("secret")
    (world.directory(job_id, 10) / "link.bin").symlink_to("../secret")
    os.mkfifo(world.directory(job_id, 10) / "fifo.bin")
    url = f"/v1/jobs/{job_id}/checkpoints/10"

    assert world.client.get(f"{url}/files/..%2Fsecret").status_code == 404
    assert world.client.get(f"{url}/files/link.bin").json()["code"] == "checkpoint_damaged"
    assert world.client.get(f"{url}/files/fifo.bin").json()["code"] == "checkpoint_damaged"
    assert world.client.get(f"{url}/archive").status_code in {404, 500}


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda _: b""])
def test_a_file_of_another_size_is_refused_before_any_byte(world, stored, change):
    """Cut short on disk, or grown: not handed out as whole."""
    path = world.directory(stored[0], 10) / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    for url in (stored[2], stored[2].rsplit("/files", 1)[0] + "/archive", stored[2].rsplit("/files", 1)[0] + "/statistics"):
        answer = world.client.get(url)
        assert (answer.status_code, answer.json()["code"]) == (500, "checkpoint_damaged")


def test_a_checkpoint_that_was_pruned_meanwhile_is_404(world, stored):
    """Announced as gone a moment later."""
    for path in world.directory(stored[0], 10).iterdir():
        path.unlink()
    world.directory(stored[0], 10).rmdir()

    assert world.client.get(stored[2]).json()["code"] == "checkpoint_not_found"


def test_the_archive_is_a_tar_of_exactly_the_announced_length(world, stored):
    """The same files and the manifest, byte for byte."""
    answer = world.client.get(f"/v1/jobs/{stored[0]}/checkpoints/best/archive")

    assert answer.headers["content-length"] == str(len(answer.content))
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}
    directory = world.directory(stored[0], 10)
    assert found == {f"step-00000010/{path.name}": path.read_bytes() for path in directory.iterdir()}
    assert json.loads(found["step-00000010/manifest.json"]) == stored[1]


def _flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_file_of_the_right_size_breaks_off(tmp_path):
    """One bit, wherever it is: no client, however trusting, gets the whole of it; neither by itself nor in an archive."""
    with served(tmp_path) as world:
        job_id = world.start()
        files = {"model.safetensors": {"size": 3_000_000, "sha256": hashlib.sha256(bytes(3_000_000)).hexdigest()}}
        world.checkpoint(job_id, 10, seq=1, files=files)
        path = world.directory(job_id, 10) / "model.safetensors"
        path.write_bytes(bytes(3_000_000))
        url = f"/v1/jobs/{job_id}/checkpoints/10"
        whole = ("/files/model.safetensors", "/archive")
        assert [world.client.get(url + end).status_code for end in whole] == [200, 200]
        for at in (0, 1_500_000, 2_999_999):
            _flip(path, at)
            for end in whole:
                with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                    world.client.get(url + end)
            _flip(path, at)


def test_a_manifest_that_is_not_the_catalogues_is_refused(world, stored):
    """It lists no digest of itself, so it is compared with what was announced."""
    path = world.directory(stored[0], 10) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"epoch": 1.0', b'"epoch": 1.5'))
    answer = world.client.get(stored[2].replace("model.safetensors", "manifest.json"))

    assert (answer.status_code, answer.json()["code"]) == (500, "checkpoint_damaged")


def test_the_archive_can_be_resumed(world, stored):
    """Any range of it is a range of the same bytes."""
    url = f"/v1/jobs/{stored[0]}/checkpoints/10/archive"
    whole = world.client.get(url)
    size, etag = len(whole.content), whole.headers["etag"]
    for start, end in ((0, 1), (511, 1400), (size // 2, size), (size - 1, size)):
        part = world.client.get(url, headers={"Range": f"bytes={start}-{end - 1}", "If-Range": etag})
        assert (part.status_code, part.content) == (206, whole.content[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    assert world.client.get(url, headers={"If-None-Match": etag}).status_code == 304


def test_the_statistics_alone_can_be_downloaded(world, stored):
    """A safetensors file of their own, with digest, ranges and HEAD; the rest of the model is not even read."""
    path, url = world.directory(stored[0], 10) / "model.safetensors", f"{stored[2]}?include=statistics"
    model_before = load(path.read_bytes())
    weight = model_before["stem.conv.weight"].tobytes()
    path.write_bytes(path.read_bytes().replace(weight, bytes(len(weight))))
    answer = world.client.get(url)
    found = load(answer.content)

    assert set(found) == {name for name in model_before if ".norm." in name}
    assert all((found[name] == model_before[name]).all() and found[name].dtype == model_before[name].dtype for name in found)
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["content-disposition"] == 'attachment; filename="statistics.safetensors"'
    assert world.client.get(url, headers={"Range": "bytes=3-8"}).content == answer.content[3:9]
    assert world.client.head(url).headers == answer.headers
    for wrong, status in (("training.json?include=statistics", 404), ("model.safetensors?include=weights", 422)):
        assert world.client.get(stored[2].replace("model.safetensors", wrong)).status_code == status


def test_damaged_statistics_are_refused_before_the_first_byte(world):
    """Where the manifest has their digest, which every worker writes."""
    job_id = world.start()
    content = statistics_of(TensorFile.read(Bytes(model(10))), [layer["name"] for layer in LAYERS])
    world.checkpoint(job_id, 10, seq=1, statistics={"size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    url, path = f"/v1/jobs/{job_id}/checkpoints/10", world.directory(job_id, 10) / "model.safetensors"
    asks = (f"{url}/files/model.safetensors?include=statistics", f"{url}/statistics")
    assert [world.client.get(ask).status_code for ask in asks] == [200, 200]
    path.write_bytes(path.read_bytes().replace(struct.pack("<4f", -1, 0, 1, 10), struct.pack("<4f", -1, 0, 1, 11)))

    for ask in asks:
        answer = world.client.get(ask)
        assert (answer.status_code, answer.json()["code"]) == (500, "checkpoint_damaged")


def test_a_real_server_sends_ranges_heads_and_archives(tmp_path):
    """By a socket: lengths are right, and a connection is used again after each."""
    with served(tmp_path) as world:
        job_id = world.start()
        world.checkpoint(job_id, 10, seq=1)
        url = f"/v1/jobs/{job_id}/checkpoints/latest"
        whole = world.client.get(f"{url}/files/model.safetensors")
        assert hashlib.sha256(whole.content).hexdigest() == whole.headers["etag"].strip('"')
        assert world.client.head(f"{url}/files/model.safetensors").headers["content-length"] == str(len(whole.content))
        part = world.client.get(f"{url}/files/model.safetensors", headers={"Range": "bytes=8-"})
        assert (part.status_code, part.content) == (206, whole.content[8:])
        archive = world.client.get(f"{url}/archive")
        assert len(archive.content) == int(world.client.head(f"{url}/archive").headers["content-length"])
        assert world.client.get(f"{url}/files/model.safetensors", headers={"If-None-Match": whole.headers["etag"]}).status_code == 304


@given(st.text(st.sampled_from("bytes=0123456789-, aBYT"), max_size=20) | st.text(), st.integers(0, 100))
def test_any_range_header_gives_a_slice_of_the_file_or_416(header, size):
    """Whatever a client sends."""
    try:
        chosen = slice_of({"range": header}, '"e"', size)
    except RangeError as error:
        said = error.headers["Content-Range"]
    else:
        said = f"bytes */{size}"
        assert 0 <= chosen.start <= chosen.end <= size
        assert chosen.status == 200 or chosen.end > chosen.start
    assert said == f"bytes */{size}"
