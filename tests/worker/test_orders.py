"""Tests of worker/orders.py."""

import threading

import pytest

from worker.contract import Assignment, parse_spec
from worker.orders import Orders, Request

SPEC = parse_spec({"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}})


def _assignment(generation):
    return Assignment(
        job_id="job_0", attempt=1, fence=1, generation=generation, rank=0, world_size=1, spec=SPEC, storage="/", marker="m",
        store_host="127.0.0.1", store_port=1,
    )  # fmt: skip


def test_a_stale_generation_is_refused():
    """What an older controller says too late changes nothing."""
    orders = Orders()

    assert [orders.assign(_assignment(generation)) for generation in (2, 1, 2, 3)] == [True, False, False, True]
    assert orders.generation == 3


def test_a_waiting_rank_is_woken_by_the_next_assignment():
    """A parked rank goes on as soon as it is told where."""
    orders = Orders()
    orders.assign(_assignment(1))
    timer = threading.Timer(0.05, lambda: orders.assign(_assignment(2)))
    timer.start()

    assert orders.await_newer(1, 10).generation == 2
    timer.join()


def test_a_cancel_ends_the_wait():
    """Nobody waits for an assignment that will not come."""
    orders = Orders()
    orders.assign(_assignment(1))
    timer = threading.Timer(0.05, orders.ask_to_stop)
    timer.start()

    assert orders.await_newer(1, 10) is None
    assert orders.stop.is_set()
    timer.join()


def test_the_wait_is_bounded():
    """A controller that never comes back does not hold the machine for ever."""
    assert Orders().await_newer(0, 0.01) is None


def test_a_newer_assignment_breaks_the_group_of_an_older_one_off():
    """A rank that waits in a collective for a dead peer is fetched out of it."""
    orders, calls = Orders(), []
    orders.assign(_assignment(1))
    with orders.interrupting(1, lambda: calls.append("interrupted")):
        orders.assign(_assignment(1))
        assert calls == []
        orders.assign(_assignment(2))
    orders.assign(_assignment(3))

    assert calls == ["interrupted"]


def test_a_group_that_is_late_is_interrupted_at_once():
    """The newer assignment came while the group was made: its first collective must not be waited for."""
    orders, calls = Orders(), []
    orders.assign(_assignment(1))
    orders.assign(_assignment(2))
    with orders.interrupting(1, lambda: calls.append("interrupted")):
        assert calls == ["interrupted"]


def test_a_store_belongs_to_its_generation():
    """Asked twice for the store of one generation, a rank serves one; the one before is let go."""
    orders = Orders()

    assert orders.serve(1, "first") == "first"
    assert orders.serve(1, "another") == "first"
    assert orders.serve(2, "second") == "second"
    assert (orders.store_of(1), orders.store_of(2)) == (None, "second")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([Request.GO_ON, Request.GO_ON], Request.GO_ON),
        ([Request.PAUSE, Request.GO_ON], Request.PAUSE),
        ([Request.PAUSE] * 1000, Request.PAUSE),
        ([Request.PAUSE, Request.STOP], Request.STOP),
        ([Request.STOP, Request.STOP], Request.STOP),
    ],
)
def test_what_one_is_asked_all_do(asked, expected):
    """To stop wins over to pause; one rank suffices."""
    assert Request.of_sum(float(sum(asked))) is expected
