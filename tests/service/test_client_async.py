"""The client for event loops: what it does beside others. What both clients do is tested on the other one, which is generated from it."""

import asyncio
import inspect
from contextlib import aclosing

import httpx
import pytest

from service.client import AsyncClient, Client, IntegrityError, NotFound
from service.client.patience import Patience
from tests.support.live_service import SPEC
from tests.support.scripted import JOB, QUICK, sse_events
from tests.support.synchronous import CLIENT, GENERATED, TWINS, generated
from tests.support.unsteady import CONTENT, serving

LIMIT_S = 60


def _run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, LIMIT_S))


class AsyncScript(httpx.AsyncBaseTransport):
    """Answers each request with the next line of a script and keeps what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    async def handle_async_request(self, request):
        """Give the next answer."""
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _client_of(script):
    return AsyncClient("http://127.0.0.1:1", "secret", patience=QUICK, http=script)


@pytest.mark.parametrize("name", GENERATED)
def test_the_synchronous_client_is_generated_from_this_one(name):
    """Nothing of the two is written or mended twice. If this fails: change service/client/asynchronous, then `make format`."""
    assert (CLIENT / "synchronous" / name).read_text() == generated(name)


def test_no_file_of_the_synchronous_client_is_left_over():
    """What is there was generated, or is a twin."""
    assert sorted(path.name for path in (CLIENT / "synchronous").glob("*.py")) == sorted([*GENERATED, *TWINS])


def test_both_clients_have_the_same_methods():
    """Whoever knows one knows the other."""
    both = [{name for name, _ in inspect.getmembers(kind) if not name.startswith("_")} for kind in (Client, AsyncClient)]
    assert both[0] - {"close"} == both[1] - {"aclose"}
    assert all(inspect.iscoroutinefunction(getattr(AsyncClient, name)) for name in ("submit", "job", "metrics", "download", "wait"))


def test_many_jobs_are_submitted_followed_and_fetched_at_once(service, tmp_path):
    """One loop, several jobs: each is followed to its end, plotted and downloaded."""

    async def whole(client, number):
        job = await client.submit({**SPEC, "name": f"good-{number}"})
        seen = [event["type"] async for event in client.follow_events(job.id)]
        assert (seen[0], seen[-1]) == ("state", "end")
        job = await client.wait(job.id, timeout_s=20, interval_s=0.05)
        assert (await job.metrics("train/loss"))["train/loss"] == [[1, 1.0], [2, 0.5], [3, pytest.approx(1 / 3)]]
        manifest = await client.download(job.id, "best", tmp_path / str(number))
        assert (tmp_path / str(number) / "model.safetensors").stat().st_size == manifest["files"]["model.safetensors"]["size"]
        return job["state"]

    async def scenario():
        async with AsyncClient(home=service.home) as client:
            states = await asyncio.gather(*(whole(client, number) for number in range(4)))
            assert states == ["succeeded"] * 4
            assert len({job.id async for job in client.jobs(search="good-", limit=4)}) == 4

    _run(scenario())


def test_a_submission_is_repeated_under_one_key():
    """My submission's answer is lost; the client repeats it, and it is one job."""
    script = AsyncScript(httpx.ReadError("reset"), httpx.Response(503), httpx.Response(201, json=JOB))
    assert _run(_client_of(script).submit({"name": "a"})) == JOB
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1


def test_a_stream_goes_on_after_the_last_event_seen():
    """The connection of a live stream breaks; no event is missed and none comes twice."""
    half = sse_events((1, "state"), (2, "log")) + b'id: 3\nevent: log\ndata: {"se'
    script = AsyncScript(
        httpx.Response(200, content=half), httpx.ConnectError("away"), httpx.Response(200, content=sse_events((3, "log"), (4, "end")))
    )

    async def scenario():
        return [event["seq"] async for event in _client_of(script).follow_events("job_1")]

    assert _run(scenario()) == [1, 2, 3, 4]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "2", "2"]


def test_whoever_stops_to_listen_lets_go_of_the_connection():
    """I leave a stream early: its connection is closed when I have closed the iterator."""

    class Endless(httpx.AsyncByteStream):
        is_closed = False

        async def __aiter__(self):
            yield sse_events((1, "state"))
            await asyncio.Event().wait()

        async def aclose(self):
            self.is_closed = True

    stream = Endless()

    async def scenario():
        async with aclosing(_client_of(AsyncScript(httpx.Response(200, stream=stream))).follow_events("job_1")) as events:
            async for _ in events:
                break

    _run(scenario())
    assert stream.is_closed


def test_waiting_is_cancelled_like_any_task(service):
    """I give up on a job that goes on for ever: the wait ends at once, and the job goes on."""

    async def scenario():
        async with AsyncClient(home=service.home) as client:
            job = await client.submit({**SPEC, "name": "forever"})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.wait(job.id), 0.2)
            assert (await client.cancel(job.id))["state"] in {"cancelling", "cancelled"}

    _run(scenario())


def test_an_unknown_job_is_not_found(service):
    """The same errors as the other client's."""

    async def scenario():
        async with AsyncClient(home=service.home) as client:
            await client.job("job_" + "0" * 26)

    with pytest.raises(NotFound):
        _run(scenario())


def _download(url, directory):
    async def scenario():
        async with AsyncClient(url, "t", patience=Patience(tries=3, first_wait_s=0.001)) as client:
            return await client.download("job_1", "best", directory)

    return _run(scenario())


def test_a_download_is_resumed_verified_and_in_place_only_when_whole(tmp_path):
    """The connection breaks twice; every byte is fetched once, and corrupted ones are refused."""
    with serving() as server:
        server.drop_after = [1_000_000, 500_000]
        _download(server.url, tmp_path / "c")
        assert (tmp_path / "c/model.safetensors").read_bytes() == CONTENT
        assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-"]
        server.ranges.clear()
        _download(server.url, tmp_path / "c")  # whole already: only verified
        assert server.ranges == []
        server.content = b"\0" * len(CONTENT)
        with pytest.raises(IntegrityError, match="arrived as SHA-256"):
            _download(server.url, tmp_path / "d")
        assert list((tmp_path / "d").iterdir()) == []
