"""What the client does when the service is away, slow or refuses: retries that are safe, errors that say what to do."""

import httpx
import pytest

from service.client import BadRequest, Client, ClientError, Conflict, Denied, Failing, NotFound, Unreachable
from service.client.answers import Event
from service.client.following import Following
from service.client.patience import Patience
from service.client.sse import Decoder, Message
from service.client.synchronous.streams import follow
from tests.support.scripted import JOB, QUICK, Script, sse_events


def _client_of(script):
    return Client("http://127.0.0.1:1", "secret", patience=QUICK, http=script)


def _problem(status, code="a_code", **rest):
    return httpx.Response(
        status, json={"type": "about:blank", "title": "T", "status": status, "code": code, "detail": "what and why", **rest}
    )


def test_a_get_survives_passing_failures():
    """I ask while the controller restarts, and still get my answer."""
    script = Script(httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(200, json=JOB))
    assert _client_of(script).job("job_1") == JOB
    assert len(script.requests) == 3


def test_a_get_gives_up_with_the_address_and_the_remedy():
    """Nobody answers: I am told where nobody answered and how to start a controller."""
    with pytest.raises(Unreachable, match=r"no service answers at http://127\.0\.0\.1:1 \(refused\): start one with `syncbn serve`"):
        _client_of(Script(*[httpx.ConnectError("refused")] * 3)).job("job_1")


def test_a_submission_is_repeated_under_one_key():
    """My submission's answer is lost; the client repeats it, and it is one job."""
    script = Script(httpx.ReadError("reset"), httpx.Response(201, json=JOB))
    assert _client_of(script).submit({"name": "a"}) == JOB
    first, second = script.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.content == second.content
    assert first.headers["authorization"] == "Bearer secret"


def test_two_submissions_have_two_keys():
    """Submitting twice on purpose makes two jobs."""
    script = Script(httpx.Response(201, json=JOB), httpx.Response(201, json=JOB))
    client = _client_of(script)
    client.submit({})
    client.submit({})
    first, second = script.requests
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


def test_a_delete_is_not_repeated():
    """What may not be repeated is sent once."""
    script = Script(httpx.ReadError("reset"))
    with pytest.raises(Unreachable):
        _client_of(script).delete("job_1")


def test_a_body_that_breaks_off_is_asked_for_again():
    """The connection breaks in mid-answer: I get the whole answer from the next one."""

    class Broken(httpx.SyncByteStream):
        def __iter__(self):
            yield b'{"id'
            raise httpx.ReadError("reset")

    script = Script(httpx.Response(200, stream=Broken()), httpx.Response(200, json=JOB))
    assert _client_of(script).job("job_1") == JOB


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (422, BadRequest), (401, Denied), (403, Denied), (404, NotFound), (409, Conflict), (412, Conflict), (500, Failing)],
)
def test_a_refusal_is_an_error_of_its_kind_and_not_repeated(status, kind):
    """The service says no; the client says so at once, with everything the answer holds."""
    rows = [{"loc": "epoch", "value": 3, "expected": "a known key", "remedy": "did you mean epochs?"}]
    with pytest.raises(kind) as caught:
        _client_of(Script(_problem(status, errors=rows))).job("job_1")
    assert (caught.value.status, caught.value.code, str(caught.value)) == (status, "a_code", "what and why")
    assert caught.value.errors == tuple(rows)


def test_overload_is_waited_out_as_the_service_asks(monkeypatch):
    """Too many requests: the client waits as long as Retry-After says, within reason."""
    waits = []
    monkeypatch.setattr("service.client.synchronous.blocking.time.sleep", waits.append)
    script = Script(httpx.Response(429, headers={"retry-after": "3"}), httpx.Response(200, json=JOB))
    Client("http://127.0.0.1:1", "t", patience=Patience(), http=script).job("job_1")
    assert waits == [3.0]


@pytest.mark.parametrize("header", ["soon", "nan", "inf", "-5", "1e999", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_strange_retry_after_does_no_harm(header):
    """A Retry-After that is no number of seconds is no reason to hang or to fail."""
    assert Patience(longest_wait_s=1.0).wait_s(1, header) <= 1.0


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b"\xff\xfe", b'"text"', b'{"detail": null, "errors": 3}'])
def test_an_error_of_something_else_than_our_service_is_an_error_too(body):
    """A proxy answers instead of the service: an error with the status, not a traceback."""
    with pytest.raises(NotFound, match=r"the service answered 404 Not Found") as caught:
        _client_of(Script(httpx.Response(404, content=body))).job("job_1")
    assert caught.value.code == "http_404"


def test_an_answer_that_is_no_object_is_refused():
    """SYNCBN_URL points at some web page: I am told that it is no syncbn service."""
    with pytest.raises(ClientError, match=r"is http://127.0.0.1:1 a syncbn service"):
        _client_of(Script(httpx.Response(200, text="<html>"))).job("job_1")


def test_an_id_cannot_lead_to_another_route():
    """An id with slashes in it stays one part of the path."""
    script = Script(_problem(404))
    with pytest.raises(NotFound):
        _client_of(script).job("../../healthz?x#y")
    assert script.requests[0].url.raw_path == b"/v1/jobs/..%2F..%2Fhealthz%3Fx%23y"


def test_a_page_of_a_search_may_be_empty_and_not_the_last():
    """It ends where the service says so."""
    pages = [
        {"data": [], "has_more": True, "next_cursor": "5", "num_searched": 5},
        {"data": [{"seq": 7}], "has_more": False, "next_cursor": None, "num_searched": 2},
    ]
    script = Script(*(httpx.Response(200, json=page) for page in pages))
    assert [line["seq"] for line in _client_of(script).logs("job_1", contains="x")] == [7]
    assert [dict(request.url.params) for request in script.requests] == [
        {"contains": "x", "limit": "1000"},
        {"contains": "x", "limit": "1000", "after": "5"},
    ]


def test_pages_are_fetched_until_the_limit():
    """I ask for three jobs and the pages hold two."""
    pages = [
        {"data": [{"id": 1}, {"id": 2}], "has_more": True, "next_cursor": "c"},
        {"data": [{"id": 3}], "has_more": True, "next_cursor": "d"},
    ]
    script = Script(*(httpx.Response(200, json=page) for page in pages))
    assert [job["id"] for job in _client_of(script).jobs(state="running", limit=3)] == [1, 2, 3]
    assert [dict(request.url.params) for request in script.requests] == [
        {"state": "running", "limit": "3"},
        {"state": "running", "limit": "1", "after": "c"},
    ]


def test_a_stream_goes_on_after_the_last_event_seen():
    """The connection of a live stream breaks; no event is missed and none comes twice."""
    half = sse_events((1, "state"), (2, "log")) + b'id: 3\nevent: log\ndata: {"se'
    script = Script(
        httpx.Response(200, content=half),
        httpx.ConnectError("away"),
        httpx.Response(503),
        httpx.Response(200, content=sse_events((3, "log"), (4, "end"))),
    )
    assert [event["seq"] for event in _client_of(script).follow_events("job_1")] == [1, 2, 3, 4]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "2", "2", "2"]


def test_a_stream_that_stays_away_is_given_up():
    """The controller is gone for good: following ends with an error instead of waiting for ever."""
    now = iter(range(0, 1000, 7))
    transport = _client_of(Script(*[httpx.ConnectError("away")] * 100))._transport
    with pytest.raises(Unreachable, match=r"the stream was lost for 30 s: no service answers"):
        list(follow(Event, transport, "/v1/x", following=Following("/v1/x", None, 30, lambda: next(now))))


def test_a_stream_that_is_refused_is_not_tried_again():
    """Following a job that is not there fails at once."""
    with pytest.raises(NotFound):
        list(_client_of(Script(_problem(404))).follow_events("job_1"))


def test_lines_of_a_stream_end_where_sse_says():
    """A log line with U+2028 or a vertical tab in it is one line; CR LF split over two packets is one end."""
    text = "data: a\u2028b\x0bc\r".encode(), b"\n\r", b"\n: beat\n\ndata: 1\ndata: 2\n\ndata: half"
    decoder = Decoder()
    assert [message for chunk in text for message in decoder.feed(chunk)] == [
        Message("message", "a\u2028b\x0bc", None),
        Message("message", "1\n2", None),
    ]


def test_the_address_comes_from_the_home(tmp_path, monkeypatch):
    """On the machine of the controller I configure nothing."""
    monkeypatch.setenv("SYNCBN_HOME", str(tmp_path))
    monkeypatch.delenv("SYNCBN_URL", raising=False)
    monkeypatch.delenv("SYNCBN_TOKEN", raising=False)
    with pytest.raises(Unreachable, match=f"no controller runs on the home {tmp_path}"):
        Client(patience=QUICK).job("job_1")
    (tmp_path / "token").write_text("from-home\n")
    (tmp_path / "controller.json").write_text('{"url": "http://127.0.0.1:7/", "pid": 1}')
    script = Script(httpx.Response(200, json=JOB))
    client = Client(http=script)
    client.job("job_1")
    assert str(script.requests[0].url) == "http://127.0.0.1:7/v1/jobs/job_1"
    assert script.requests[0].headers["authorization"] == "Bearer from-home"


def test_a_controller_that_comes_back_on_another_port_is_found(tmp_path):
    """The controller restarts on another port while I follow: the client looks into the home again."""
    note = tmp_path / "controller.json"
    note.write_text('{"url": "http://127.0.0.1:7", "pid": 1}')

    class Moving(Script):
        def handle_request(self, request):
            """Move, and give the next answer."""
            note.write_text('{"url": "http://127.0.0.1:8", "pid": 2}')
            return super().handle_request(request)

    script = Moving(httpx.ConnectError("refused"), httpx.Response(200, json=JOB))
    Client(home=tmp_path, patience=QUICK, http=script).job("job_1")
    assert [request.url.port for request in script.requests] == [7, 8]


def test_a_home_in_the_call_goes_before_the_environment(tmp_path, monkeypatch):
    """SYNCBN_URL is about another controller than the home that I name."""
    monkeypatch.setenv("SYNCBN_URL", "http://elsewhere:1")
    monkeypatch.setenv("SYNCBN_TOKEN", "elsewhere")
    (tmp_path / "controller.json").write_text('{"url": "http://127.0.0.1:7", "pid": 1}')
    script = Script(httpx.Response(200, json=JOB))
    Client(home=tmp_path, http=script).job("job_1")
    assert script.requests[0].url.host == "127.0.0.1"
    assert "authorization" not in script.requests[0].headers


@pytest.mark.parametrize("url", ["localhost:8470", "ftp://host", "http://", "nonsense"])
def test_a_url_that_is_none_is_refused(url):
    """A typing error in SYNCBN_URL is named, with what was expected."""
    with pytest.raises(ClientError, match=r"expected http://HOST:PORT"):
        Client(url)
