"""The client against the real application: every route as a user calls it."""

import hashlib

import pytest
from safetensors.numpy import load

from service.client import BadRequest, Client, Conflict, Denied, NotFound
from tests.support.live_service import NASTY, SPEC

UNKNOWN = "job_" + "0" * 26


@pytest.fixture
def client(service):
    """A client as one has it on the controller's machine."""
    with Client(home=service.home) as client:
        yield client


@pytest.fixture(scope="module")
def done(service):
    """A job that has succeeded."""
    with Client(service.url, service.token) as client:
        return client.wait(client.submit(SPEC)["id"], timeout_s=20, interval_s=0.05)


def test_a_job_the_whole_way(done):
    """I submit, wait, and see what became of it."""
    assert (done["state"], done["progress"]["step"], done["metrics"]["train/loss"]) == ("succeeded", 3, pytest.approx(1 / 3))


def test_one_key_is_one_job(client):
    """The same submission under the same key is the same job."""
    first = client.submit(SPEC, idempotency_key="one")
    assert client.submit(SPEC, idempotency_key="one")["id"] == first["id"]


def test_validation_fills_in_the_defaults_and_submits_nothing(client):
    """A dry run shows what would run."""
    before = len(list(client.jobs()))
    assert client.validate(SPEC)["optimizer"]["name"] == "sgd"
    assert len(list(client.jobs())) == before


def test_a_wrong_spec_says_everything_that_is_wrong(client):
    """Two mistakes are reported at once, each with its place and a remedy."""
    with pytest.raises(BadRequest) as caught:
        client.submit({**SPEC, "epoch": 3, "batch_size": 0})
    assert {row["loc"] for row in caught.value.errors} == {"epoch", "batch_size"}
    assert "did you mean epochs?" in [row["remedy"] for row in caught.value.errors]


def test_lists_are_filtered_and_limited(client, done):
    """I see the jobs I asked for."""
    assert [job["id"] for job in client.jobs(limit=1, state="succeeded")]
    assert done["id"] in {job["id"] for job in client.jobs(state="succeeded")}
    assert list(client.jobs(state="failed", label="no=such")) == []


def test_events_as_pages_and_as_a_stream_are_the_same(client, done):
    """Following from the start shows what the pages show, and ends by itself."""
    streamed = list(client.follow_events(done["id"]))
    assert streamed == list(client.events(done["id"]))
    assert streamed[-1]["type"] == "end"
    assert [event["seq"] for event in streamed] == list(range(1, len(streamed) + 1))
    assert list(client.follow_events(done["id"], after=str(streamed[-1]["seq"]))) == []
    assert list(client.follow_events(done["id"], after=str(streamed[-2]["seq"]))) == streamed[-1:]


def test_a_stream_follows_a_job_that_is_still_running(client):
    """I follow a job from its submission to its end."""
    seen = [event["type"] for event in client.follow_events(client.submit(SPEC)["id"])]
    assert seen[0] == "state"
    assert seen[-1] == "end"
    assert "checkpoint" in seen


def test_logs_as_pages_and_as_a_stream_are_the_same(client, done):
    """What a rank wrote arrives unchanged, separators and all."""
    lines = list(client.logs(done["id"]))
    assert [line["message"] for line in lines] == [NASTY]
    assert list(client.follow_logs(done["id"], rank=0)) == lines
    assert list(client.logs(done["id"], rank=7)) == []


def test_logs_are_searched_as_pages_and_as_a_stream(client, done):
    """What contains a text, in capitals or not."""
    words = NASTY[:8].upper()
    assert (
        list(client.logs(done["id"], contains=words))
        == list(client.follow_logs(done["id"], contains=words))
        == list(client.logs(done["id"]))
    )
    assert list(client.logs(done["id"], contains="never said")) == list(client.follow_logs(done["id"], contains="never said")) == []


def test_metrics_by_name(client, done):
    """A series is steps and values."""
    series = client.metrics(done["id"], ["train/loss"])["series"]
    assert [(row["name"], [step for step, _ in row["points"]]) for row in series] == [("train/loss", [1, 2, 3])]
    assert len(client.metrics(done["id"])["series"]) == 3


def test_a_checkpoint_is_listed_described_and_downloaded(client, done, tmp_path):
    """What I download is what the list and the manifest promise, and a second download changes nothing."""
    (listed,) = client.checkpoints(done["id"])
    seen = []
    manifest = client.download(done["id"], "best", tmp_path / "c", lambda *told: seen.append(told))
    assert manifest["step"] == listed["step"] == 3
    for entry in listed["files"]:
        content = (tmp_path / "c" / entry["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])
    assert ("training.json", 2000, 2000) in seen
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir() if path.name != "manifest.json"}
    assert client.download(done["id"], "latest", tmp_path / "c") == manifest
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["manifest.json", "model.safetensors", "training.json"]


def test_statistics_in_summary_and_in_full(client, done):
    """The running statistics of a layer, without downloading anything."""
    (layer,) = client.statistics(done["id"], "best")["layers"]
    assert layer["running_mean"] == {"min": -1.0, "max": 3.0, "mean": 1.0}
    assert client.statistics(done["id"], 3, layer="bn1")["layers"]
    with pytest.raises(NotFound):
        client.statistics(done["id"], 3, layer="bn9")


def test_the_statistics_alone_are_a_file_of_their_own(client, done):
    """A few bytes of the model, which any safetensors library reads."""
    tensors = load(client.download_statistics(done["id"], "best"))
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "bn1.running_mean": [-1, 3],
        "bn1.running_var": [0.5, 2.5],
        "bn1.num_batches_tracked": 3,
    }


def test_a_pinned_checkpoint_cannot_be_deleted_before_its_pin_is_removed(client, service):
    """Of a job that has ended, even the last one can go."""
    job = client.wait(client.submit(SPEC)["id"], timeout_s=20)
    assert client.pin(job["id"], "best")["pinned"]
    with pytest.raises(Conflict, match="is pinned"):
        client.delete_checkpoint(job["id"], 3)
    assert not client.unpin(job["id"], 3)["pinned"]
    client.delete_checkpoint(job["id"], 3)
    assert list(client.checkpoints(job["id"])) == []


def test_a_checkpoint_is_the_beginning_of_other_jobs(client, done):
    """Trained on, re-estimated, exported: each call is a job that names the checkpoint, and twice under one key it is one."""
    made = [
        client.fork(done["id"], "best", changes={"optimizer.lr": 0.5}),
        client.recalibrate(done["id"], num_samples=64, estimator="mean_of_batches"),
        client.export(done["id"], "latest", formats=["onnx"], idempotency_key="once"),
    ]
    assert {job["spec"]["initialize_from"] for job in made} == {f"{done['id']}/checkpoints/3"}
    assert made[0]["spec"]["optimizer"]["lr"] == 0.5
    assert made[1]["spec"]["recalibrate"] == {"num_samples": 64, "estimator": "mean_of_batches"}
    assert made[2]["spec"]["export"] == ["onnx"]
    assert client.export(done["id"], "latest", formats=["onnx"], idempotency_key="once")["id"] == made[2]["id"]


def test_a_cancelled_job_is_cancelled_once(client):
    """Cancelling twice is cancelling once; cancelling what has ended otherwise is refused."""
    job_id = client.submit({**SPEC, "name": "forever"})["id"]
    client.cancel(job_id)
    client.cancel(job_id)
    assert client.wait(job_id, timeout_s=20, interval_s=0.05)["state"] == "cancelled"


def test_what_has_ended_cannot_be_cancelled(client, done):
    """It is too late, and I am told so."""
    with pytest.raises(Conflict, match="succeeded"):
        client.cancel(done["id"])


def test_waiting_has_an_end(client):
    """A job that does not end does not keep me for ever."""
    job_id = client.submit({**SPEC, "name": "forever"})["id"]
    with pytest.raises(TimeoutError, match=job_id):
        client.wait(job_id, timeout_s=0.2, interval_s=0.05)
    client.cancel(job_id)


@pytest.mark.parametrize("call", [Client.job, Client.cancel, Client.manifest, Client.statistics, Client.metrics])
def test_an_unknown_job_is_not_found(client, call):
    """Every method names the same mistake alike."""
    with pytest.raises(NotFound):
        call(client, UNKNOWN)


def test_a_wrong_token_is_denied(service):
    """Without the token I learn nothing."""
    with Client(service.url, "wrong") as client, pytest.raises(Denied):
        list(client.jobs())


def test_the_service_tells_about_itself(client):
    """Ready, and with a cluster."""
    assert client.ready()["status"] == "ok"
    assert "nodes" in client.cluster()
