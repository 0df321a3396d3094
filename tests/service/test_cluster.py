"""Tests of service/cluster.py and worker/gang.py: one suite that the cluster in memory and real Ray both pass."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest

import worker
from service import cluster, embedded
from service.cluster import ClusterError, NoRoomError, RankDiedError, RayCluster
from tests.support.fake_cluster import FakeCluster
from tests.support.serving import is_alive
from worker import vacancy
from worker.contract import Assignment, EventType, parse_spec

JOB_ID = "job_00000000000000000000000001"
SPEC = parse_spec({"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "resources": {"workers": 2}})


ROOM = {"cpus": 1, "gpus": 0}


def _assignment(tmp_path, generation=1, after_seq=0):
    """Return assignments whose marker does not exist, so that a real rank ends at once and says why."""

    def make(rank, store_host, store_port):
        return Assignment(
            job_id=JOB_ID, attempt=1, fence=7, generation=generation, after_seq=after_seq, rank=rank,
            world_size=2, spec=SPEC, storage=tmp_path, marker="missing",
            store_host=store_host, store_port=store_port,
        )  # fmt: skip

    return make


async def _last_word(gang, rank, after_seq=0):
    """Drain a rank to its end; return every event."""
    events = []
    async with asyncio.timeout(60):
        while not events or events[-1].type is not EventType.END:
            drain = await gang.drain(rank, events[-1].seq if events else after_seq)
            events += drain.events
    assert drain.is_ended
    assert drain.fence == 7
    return events


async def _suite(cluster, tmp_path, finish, kill, without_room=None):
    await cluster.connect()
    try:
        assert await cluster.adopt(JOB_ID, 1, 2, **ROOM) is None
        before = await cluster.room()
        gang = await cluster.form(JOB_ID, 1, 2, **ROOM, is_given_up=lambda: False)
        assert await cluster.adopt(JOB_ID, 1, 2, **ROOM) is None, "formed, but never told what to do"
        assert await cluster.present() == {(JOB_ID, 1)}

        await gang.assign(1, _assignment(tmp_path))
        finish(gang)
        events = await _last_word(gang, 0)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[-1].data["outcome"] == "failed"
        assert events[-1].data["failure"]["code"] == "storage_not_shared"
        assert (await _last_word(gang, 0))[-1] == events[-1], "the last word is never acknowledged, so it is handed out again"

        adopted = await cluster.adopt(JOB_ID, 1, 2, **ROOM)
        assert adopted.places == (0, 1)
        kill(gang, 1)
        with pytest.raises(RankDiedError):
            await _last_word(adopted, 1, after_seq=10**6)
        assert (await _last_word(adopted, 0))[-1] == events[-1], "the other rank is still there"

        await adopted.replace([1], 2, lambda: False, is_needed=lambda: True)
        torn = await cluster.adopt(JOB_ID, 1, 2, **ROOM)
        assert (torn.generation, torn.is_torn) == (1, True), "the new process has not been told anything"
        await torn.assign(2, _assignment(tmp_path, generation=2, after_seq=100))
        assert ((await cluster.adopt(JOB_ID, 1, 2, **ROOM)).generation, torn.is_torn) == (2, False)
        finish(torn)
        assert (await _last_word(torn, 1, after_seq=100))[0].seq == 101, "numbered on from the dead one's last"

        await torn.enlist([2], _assignment(tmp_path, generation=3), lambda: False)
        assert (torn.places, torn.is_torn) == ((0, 1), False), "it trains on meanwhile"
        left_over = await cluster.adopt(JOB_ID, 1, 2, **ROOM)
        assert left_over.places == (0, 1), "who was never told anything is no member"
        await torn.regroup((0, 2))
        smaller = await cluster.adopt(JOB_ID, 1, 2, **ROOM)
        assert (smaller.places, smaller.is_torn) == ((0, 2), True)
        await smaller.assign(3, _assignment(tmp_path, generation=3))
        assert (smaller.generation, smaller.is_torn) == (3, False)
        async with asyncio.timeout(10):
            while (await cluster.room()).free_cpus != before.free_cpus - 2:
                await asyncio.sleep(0.05)

        adopted = smaller
        if without_room is not None:
            await without_room(cluster, adopted)
        await adopted.stop()
        await adopted.dissolve()
        await adopted.dissolve()
        assert await cluster.adopt(JOB_ID, 1, 2, **ROOM) is None
        assert await cluster.present() == set()
        await cluster.dissolve(JOB_ID, 1)
        async with asyncio.timeout(10):
            while (await cluster.room()).free_cpus != before.free_cpus:
                await asyncio.sleep(0.05)
        return gang
    finally:
        await cluster.disconnect()


def test_a_cluster_in_memory(tmp_path):
    """The fake that other tests rely on behaves like the real one."""

    def finish(gang):
        gang.end("failed", {"code": "storage_not_shared", "message": "no marker", "rank": 0, "retryable": False})

    asyncio.run(_suite(FakeCluster(), tmp_path, finish, lambda gang, rank: gang.dead.add(rank)))


async def _without_room(cluster, gang):
    """What there is no room for is given up as soon as nobody wants it, or, where the gang goes on without it, as nobody can have it."""
    began = time.monotonic()
    wanted = iter([True, True, False, False])
    with pytest.raises(NoRoomError):
        await cluster.form(JOB_ID, 2, 2, cpus=10_000, gpus=0, is_given_up=lambda: not next(wanted))
    assert await cluster.present() == {(JOB_ID, 1)}
    gang.cpus = 10_000
    with pytest.raises(NoRoomError, match="no living node has room for 1 of the new processes"):
        await gang.enlist([9], lambda *_: None, lambda: False)
    await gang.regroup(gang.places)
    assert time.monotonic() - began < vacancy.START_S


def _real(tmp_path):
    def kill(gang, rank):
        os.kill(gang.members[rank].pid, signal.SIGKILL)

    gang = asyncio.run(_suite(RayCluster(tmp_path, ""), tmp_path, lambda _: None, kill, _without_room))
    assert not any(is_alive(member.pid) for member in gang.members)


@pytest.mark.ray
def test_a_real_ray(tmp_path):
    """Real actors, a real SIGKILL; no process is left and the room is given back."""
    # In a process of its own: Ray reads its token once in the life of a process.
    process = multiprocessing.get_context("spawn").Process(target=_real, args=(tmp_path,))
    process.start()
    process.join(120)
    embedded.stop(tmp_path)

    assert process.exitcode == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:99999", "ray://127.0.0.1:10001"])
def test_an_address_where_nobody_answers_is_an_error(tmp_path, address):
    """A wrong SYNCBN_RAY_ADDRESS is found at once, with the address in the message."""
    with pytest.raises(ClusterError, match=f"no Ray at '{address}'.*leave SYNCBN_RAY_ADDRESS empty"):
        asyncio.run(RayCluster(tmp_path, address).connect())


@pytest.fixture
def open_ray():
    """The address of something that answers Ray's question to whoever asks."""

    class Anything(grpc.GenericRpcHandler):
        def service(self, details):
            assert details.method == "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Anything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_a_ray_that_answers_without_a_token_is_refused(tmp_path, open_ray):
    """Unless the operator says that its network is closed."""
    with pytest.raises(ClusterError, match=f"{open_ray} answers without a token.*SYNCBN_ALLOW_OPEN_RAY"):
        asyncio.run(RayCluster(tmp_path, open_ray).connect())


def test_an_open_ray_is_used_where_the_operator_says_so(tmp_path, open_ray, monkeypatch):
    """Then it is asked for nothing, and connected to."""
    asked = []
    gang = SimpleNamespace(NAMESPACE="n")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **options: asked.append(options["address"]), shutdown=lambda: None))
    monkeypatch.setitem(sys.modules, "worker.gang", gang)
    monkeypatch.setattr(worker, "gang", gang, raising=False)
    RayCluster(tmp_path, open_ray, allow_open=True)._connect()

    assert asked == [open_ray]


def test_calls_that_wait_hold_up_no_other():
    """Gangs that form, and ranks that do not answer, keep threads waiting: more than asyncio has, and a cancel needs one."""
    gate = threading.Event()

    async def scenario():
        waiting = [asyncio.create_task(cluster._off_loop(gate.wait)) for _ in range(100)]
        try:
            async with asyncio.timeout(30):
                assert await cluster._off_loop(int) == 0
        finally:
            gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(scenario())
