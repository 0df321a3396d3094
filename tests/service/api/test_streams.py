"""Tests of service/api/streams.py, downsampling.py, service/streams.py and service/logs.py."""

import asyncio
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.downsampling import downsample
from service.auth import create_token, revoke_token
from service.scopes import Scope
from service.states import State
from service.store import logs
from tests.service.api.served import served
from tests.service.api.world import running
from tests.service.store.ranks import metrics, said
from worker.contract import EventType

STREAM = {"Accept": "text/event-stream"}


def _messages(lines):
    """Yield (id, event, data) of a stream, and `ping` for each comment."""
    fields = {}
    for line in lines:
        if line.startswith(":"):
            yield "ping"
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


def _log(seq, message, stream="stdout"):
    return said(seq, EventType.LOG, stream=stream, level="info", message=message)


def test_events_are_paged_from_the_beginning(world):
    """Every event once, in order, in the public shape."""
    job_id = world.start()
    world.say(job_id, 1, *[_log(seq, str(seq)) for seq in range(1, 8)])
    first = world.client.get(f"/v1/jobs/{job_id}/events?limit=6").json()
    second = world.client.get(f"/v1/jobs/{job_id}/events?limit=6&after={first['next_cursor']}").json()

    assert [event["seq"] for page in (first, second) for event in page["data"]] == list(range(1, 11))
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
    assert list(second["data"][0]) == ["seq", "at", "type", "attempt", "rank", "data"]
    assert second["data"][0] | {"at": ""} == {
        "seq": 7, "at": "", "type": "log", "attempt": 1, "rank": 1, "data": {"stream": "stdout", "level": "info", "message": "4"},
    }  # fmt: skip


def test_logs_are_flat_and_of_one_rank_where_asked(world):
    """Who said what, on which stream."""
    job_id = world.start()
    world.say(job_id, 0, _log(1, "zero"), metrics(2, 1, train_loss=1.0))
    world.say(job_id, 1, _log(1, "<b>one</b>\r\n\x1b[31m", stream="stderr"))
    of = lambda query: world.client.get(f"/v1/jobs/{job_id}/logs?{query}").json()  # noqa: E731

    assert [(line["rank"], line["message"]) for line in of("")["data"]] == [(0, "zero"), (1, "<b>one</b>\r\n\x1b[31m")]
    assert [list(line) for line in of("rank=1")["data"]] == [["seq", "at", "rank", "attempt", "stream", "level", "message"]]
    assert of("rank=7") == {"data": [], "has_more": False, "next_cursor": None, "num_searched": 0}
    assert of("limit=1")["next_cursor"] == str(of("limit=1")["data"][0]["seq"])


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_log_is_searched_page_by_page(database, request, tmp_path):
    """Together with rank, after, before and limit; a page says how many lines it cost and where to go on, until there are no more."""
    url = request.getfixturevalue("postgres").new_database() if database == "postgresql" else ""
    with running(tmp_path, database_url=url) as world:
        _searched_page_by_page(world)


def _searched_page_by_page(world):
    job_id = world.start()
    world.say(job_id, 0, *(_log(seq, f"loss is {'NaN' if seq % 3 == 0 else seq}") for seq in range(1, 10)))
    world.say(job_id, 1, _log(1, "<mark>nan</mark>"))
    of = lambda query: world.client.get(f"/v1/jobs/{job_id}/logs?{query}").json()  # noqa: E731
    first = of("contains=is+nan&limit=2")
    second = of(f"contains=is+nan&limit=2&after={first['next_cursor']}")

    assert [(line["seq"], line["message"]) for page in (first, second) for line in page["data"]] == [
        (seq + 3, "loss is NaN") for seq in (3, 6, 9)
    ]
    assert [(page["has_more"], page["num_searched"]) for page in (first, second)] == [(True, 6), (False, 4)]
    assert [line["seq"] for line in of("contains=nan&limit=2&before=9999")["data"]] == [12, 13]
    assert [line["message"] for line in of("contains=nan&rank=1")["data"]] == ["<mark>nan</mark>"]
    assert of("contains=never") == {"data": [], "has_more": False, "next_cursor": None, "num_searched": 10}
    assert of("limit=3")["num_searched"] == 3


@pytest.mark.parametrize("words", ["", "x" * 501])
def test_a_search_for_nothing_or_too_much_is_refused(world, words):
    """With the name of the parameter."""
    answer = world.client.get(f"/v1/jobs/{world.start()}/logs", params={"contains": words})

    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, "query.contains")


def test_a_page_of_a_search_without_lines_is_not_the_last(world, monkeypatch):
    """It comes when the time is up, and leads on."""
    monkeypatch.setattr(logs, "WINDOW", 4)
    monkeypatch.setattr(logs, "BUDGET_S", 0.0)
    job_id = world.start()
    world.say(job_id, 0, *(_log(seq, str(seq)) for seq in range(1, 10)))
    page = world.client.get(f"/v1/jobs/{job_id}/logs?contains=9").json()

    assert page == {"data": [], "has_more": True, "next_cursor": "7", "num_searched": 4}


def test_a_stream_is_searched_too(world):
    """Only lines with the text in them, and the end."""
    job_id = world.start()
    world.say(job_id, 0, _log(1, "Hit 1"), _log(2, "miss"), _log(3, "hit 2"))
    world.say(job_id, 1, _log(1, "hit of another rank"))
    world.finish(job_id)
    answer = world.client.get(f"/v1/jobs/{job_id}/logs?contains=hit&rank=0", headers=STREAM)

    told = [data.get("message", event) for _, event, data in (one for one in _messages(answer.text.split("\n")) if one != "ping")]
    assert told == ["Hit 1", "hit 2", "end"]


def test_the_stream_of_an_ended_job_is_the_whole_story(world):
    """Everything, then `end`, then it closes."""
    job_id = world.start()
    world.say(job_id, 0, _log(1, "line one\nline two \u2028 three"))
    world.finish(job_id)
    answer = world.client.get(f"/v1/jobs/{job_id}/events", headers=STREAM)
    messages = [message for message in _messages(answer.text.split("\n")) if message != "ping"]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [(seq, data["seq"]) for seq, _, data in messages] == [(n, n) for n in range(1, 7)]
    assert [event for _, event, _ in messages] == ["state", "state", "state", "log", "state", "end"]
    assert messages[3][2]["data"]["message"] == "line one\nline two \u2028 three"


def test_a_stream_resumes_after_the_last_id(world):
    """A client that lost the connection misses nothing and repeats nothing; after the end there is nothing to wait for."""
    job_id = world.start()
    world.finish(job_id)
    resume = lambda last: world.client.get(f"/v1/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": str(last)})  # noqa: E731

    assert [message[0] for message in _messages(resume(3).text.split("\n")) if message != "ping"] == [4, 5]
    assert (resume(5).status_code, resume(5).content) == (204, b"")
    assert resume("x").status_code == 422
    assert resume(-1).status_code == 422


def test_a_live_stream_says_what_happens_when_it_happens(tmp_path):
    """Events arrive while the job runs; a log stream has only its rank's lines and the end; silence has heartbeats."""
    with served(tmp_path, heartbeat_s=0.1) as world:
        job_id = world.start()
        got: list = []
        has_pinged, has_line = threading.Event(), threading.Event()

        def read():
            with world.client.stream("GET", f"/v1/jobs/{job_id}/logs?rank=1", headers=STREAM) as answer:
                for message in _messages(answer.iter_lines()):
                    got.append(message)
                    if message != "ping":
                        has_line.set()
                    elif got.count("ping") == 3:
                        has_pinged.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert has_pinged.wait(10)
        world.say(job_id, 0, _log(1, "of another rank"))
        world.say(job_id, 1, _log(1, "mine"))
        assert has_line.wait(10)
        world.finish(job_id)
        reader.join(10)

        lines = [message for message in got if message != "ping"]
        assert [(event, data.get("message", data.get("data"))) for _, event, data in lines] == [
            ("log", "mine"),
            ("end", {"state": "succeeded", "reason": "done", "message": ""}),
        ]


def test_streams_end_when_their_job_is_deleted_and_places_are_bounded(tmp_path):
    """One stream too many is refused with a time to try again; a reader that goes away frees its place."""
    with served(tmp_path, heartbeat_s=0.05, max_streams=1) as world:
        job_id = world.start()
        url = f"/v1/jobs/{job_id}/events"
        with world.client.stream("GET", url, headers=STREAM) as first:
            lines = _messages(first.iter_lines())
            assert next(lines) == "ping"
            refused = world.client.get(url, headers=STREAM)
            assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "too_many_streams", "5")
        places = world.client.app.state.context.places

        async def until_free():
            async with asyncio.timeout(10):
                while places.num_taken:
                    await asyncio.sleep(0.01)

        world.call(until_free)
        with world.client.stream("GET", url, headers=STREAM) as second:
            lines = _messages(second.iter_lines())
            assert next(lines) == "ping"
            world.call(world.store.jobs.delete, job_id)
            assert "end" not in [message[1] for message in lines if message != "ping"]


def test_series_are_thinned_out_and_keep_their_peaks(world):
    """First, last, highest and lowest stay; what is short is whole."""
    job_id = world.start()
    world.say(job_id, 0, *[metrics(step, step, train_loss=1000.0 if step == 77 else float(step % 7), lr=0.1) for step in range(1, 201)])
    of = lambda query: world.client.get(f"/v1/jobs/{job_id}/metrics?{query}").json()["series"]  # noqa: E731

    assert [(series["name"], len(series["points"])) for series in of("")] == [("lr", 200), ("train/loss", 200)]
    [thin] = of("name=train/loss&max_points=20")
    assert len(thin["points"]) <= 20
    assert thin["points"][0] == [1, 1.0]
    assert thin["points"][-1] == [200, 4.0]
    assert [77, 1000.0] in thin["points"]
    assert [series["name"] for series in of("name=lr&name=train/loss&name=lr")] == ["lr", "train/loss"]
    assert of("name=nope") == [{"name": "nope", "points": []}]


def test_a_part_of_a_series_is_thinned_out_by_itself(world):
    """As fine as it can be shown, both ends included."""
    job_id = world.start()
    world.say(job_id, 0, *[metrics(step, step, train_loss=float(step % 7)) for step in range(1, 201)])
    of = lambda query: world.client.get(f"/v1/jobs/{job_id}/metrics?{query}").json()["series"][0]["points"]  # noqa: E731

    assert of("from_step=50&to_step=59&max_points=10") == [[step, float(step % 7)] for step in range(50, 60)]
    assert of("from_step=195") == [[step, float(step % 7)] for step in range(195, 201)]
    assert of("name=train/loss&from_step=60&to_step=50") == []


def test_series_that_were_dropped_are_said_to_be(world):
    """Told from a job that has measured nothing; the last values stay."""
    job_id, silent = world.start(), world.start()
    world.say(job_id, 0, metrics(1, 1, train_loss=0.5))
    for one in (job_id, silent):
        world.finish(one)
    asked = lambda one: world.client.get(f"/v1/jobs/{one}/metrics").json()  # noqa: E731
    assert not asked(job_id)["is_pruned"]
    world.call(world.store.prunings.drop_metrics, job_id)

    assert asked(job_id) == {"series": [], "is_pruned": True}
    assert asked(silent) == {"series": [], "is_pruned": False}
    assert world.client.get(f"/v1/jobs/{job_id}").json()["metrics"] == {"train/loss": 0.5}


def test_dropped_events_are_told_to_whoever_reads_on(world):
    """As a page, as a stream, and among the lines of the log."""
    job_id = world.start()
    world.say(job_id, 0, *[said(seq, EventType.LOG, message=f"line {seq}") for seq in range(1, 20)])
    world.finish(job_id)
    world.call(world.store.prunings.drop_events, job_id)

    gap, end = world.client.get(f"/v1/jobs/{job_id}/events?after=3").json()["data"]
    assert (gap["type"], gap["data"]["first_seq"], gap["data"]["last_seq"], end["type"]) == ("gap", 1, end["seq"] - 1, "end")
    [line] = world.client.get(f"/v1/jobs/{job_id}/logs?rank=1").json()["data"]
    assert line["message"].startswith(f"events 1 to {gap['seq']} were dropped")
    with world.client.stream("GET", f"/v1/jobs/{job_id}/logs", headers=STREAM) as stream:
        told = [message[1] for message in _messages(stream.iter_lines()) if message != "ping"]
    assert told == ["gap", "end"]


@pytest.mark.parametrize("query", ["max_points=1", "max_points=10001", "max_points=x", "from_step=-1", "to_step=x"])
def test_a_wrong_number_of_points_is_refused(world, query):
    """Between two and ten thousand."""
    assert world.client.get(f"/v1/jobs/{world.submit()['id']}/metrics?{query}").status_code == 422


@given(st.lists(st.floats(allow_nan=False), max_size=200), st.integers(2, 50))
def test_thinning_out_keeps_order_ends_and_extremes(values, most):
    """Whatever the series."""
    points = list(enumerate(values))
    thin = downsample(points, most)

    assert len(thin) <= max(most, 2)
    assert thin == sorted(set(thin))
    assert set(thin) <= set(points)
    assert thin[:1] == points[:1]
    assert thin[-1:] == points[-1:]
    if most >= 4 and values:
        assert (min(values), max(values)) == (min(value for _, value in thin), max(value for _, value in thin))


def test_a_job_that_fails_before_it_starts_has_an_end_too(world):
    """Nobody waits for ever."""
    job_id = world.submit()["id"]
    world.call(world.store.jobs.transition, job_id, State.FAILED, from_={State.QUEUED}, reason="system_error")
    messages = list(_messages(world.client.get(f"/v1/jobs/{job_id}/events", headers=STREAM).text.split("\n")))

    assert messages[-1][1] == "end"


def test_a_stream_does_not_outlive_its_token(tmp_path):
    """Revoked or expired, it ends within a heartbeat or two, also while nothing happens; others go on."""
    with served(tmp_path, heartbeat_s=0.1) as world:
        path = f"/v1/jobs/{world.start()}/events"
        secret, made = world.call(create_token, world.store, "t", "default", [Scope.READ], None)
        with (
            world.client.stream("GET", path, headers=STREAM) as other,
            world.client.stream("GET", path, headers=STREAM | {"Authorization": f"Bearer {secret}"}) as stream,
        ):
            lines, others = stream.iter_lines(), other.iter_lines()
            next(lines)
            world.call(revoke_token, world.store, made.id)
            deadline = time.monotonic() + 20
            for _ in lines:
                assert time.monotonic() < deadline
            assert next(others) is not None
            assert world.client.app.state.context.places.num_taken == 1


def test_streams_of_one_token_are_bounded(tmp_path):
    """Whoever hoards them keeps nobody else from theirs."""
    with served(tmp_path, heartbeat_s=0.1, max_streams_per_token=1) as world:
        path = f"/v1/jobs/{world.start()}/events"
        secret, _ = world.call(create_token, world.store, "t", "default", [Scope.READ], None)
        with world.client.stream("GET", path, headers=STREAM) as first:
            # Kept: an iterator that is dropped closes the stream.
            lines = first.iter_lines()
            next(lines)
            with world.client.stream("GET", path, headers=STREAM) as refused:
                assert refused.status_code == 429
                assert refused.headers["retry-after"]
                assert json.loads(refused.read())["code"] == "too_many_streams"
            with world.client.stream("GET", path, headers=STREAM | {"Authorization": f"Bearer {secret}"}) as second:
                assert second.status_code == 200


def test_events_are_read_from_the_end_and_by_type(world):
    """The newest of some types first, then what is before; the last page says that there is no more."""
    job_id = world.start()
    world.say(job_id, 0, *(said(seq, EventType.LOG if seq % 2 else EventType.WARNING, message=str(seq)) for seq in range(1, 8)))
    get = lambda what, query: world.client.get(f"/v1/jobs/{job_id}/{what}?{query}").json()  # noqa: E731
    newest = get("events", "type=log&type=warning&before=9999&limit=3")
    older = get("events", f"type=log&type=warning&before={newest['next_cursor']}&limit=3")
    oldest = get("events", f"type=log&type=warning&before={older['next_cursor']}&limit=3")
    log = get("logs", "before=9999&limit=2")

    assert [[event["data"]["message"] for event in page["data"]] for page in (newest, older, oldest)] == [list("567"), list("234"), ["1"]]
    assert [page["has_more"] for page in (newest, older, oldest)] == [True, True, False]
    assert [line["message"] for line in log["data"]] == ["5", "7"]
    assert get("events", "type=nonsense")["code"] == "invalid_request"


def test_a_stream_has_only_the_types_that_it_was_asked_for(world):
    """And the end."""
    job_id = world.start()
    world.say(job_id, 0, said(1, EventType.LOG, message="x"), metrics(2, step=1, train_loss=1.0))
    world.finish(job_id)
    answer = world.client.get(f"/v1/jobs/{job_id}/events?type=metrics", headers=STREAM)

    assert [message[1] for message in _messages(answer.text.splitlines()) if message != "ping"] == ["metrics", "end"]
