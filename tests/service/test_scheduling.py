"""Tests of service/scheduling.py."""

from hypothesis import given
from hypothesis import strategies as st

from service.scheduling import Need, Room, plan

ROOM = Room(total_cpus=8, total_gpus=2, free_cpus=4, free_gpus=1)


def test_whole_gangs_start_in_order_while_they_fit():
    """A gang starts whole or waits."""
    decision = plan([Need("a", 2, 1, 0), Need("b", 2, 1, 0), Need("c", 1, 1, 0)], ROOM)

    assert decision.start == ("a", "b")
    assert decision.waiting["c"] == ("no_room", "needs 1 CPUs, 0 free")


def test_a_small_job_does_not_overtake_a_large_one():
    """The large job at the head is not starved by small ones behind it."""
    decision = plan([Need("large", 8, 1, 0), Need("small", 1, 1, 0)], ROOM)

    assert decision.start == ()
    assert decision.waiting["small"] == ("behind", "waits for 1 job before it")


def test_a_job_that_never_fits_keeps_nobody_waiting():
    """A job for another cluster says so, and the next one starts."""
    decision = plan([Need("huge", 9, 1, 0), Need("small", 1, 1, 0)], ROOM)

    assert decision.start == ("small",)
    assert decision.waiting["huge"][0] == "too_large"
    assert "needs 9 CPUs, the whole cluster has 8 CPUs" in decision.waiting["huge"][1]


def test_gpus_count_too():
    """Two GPUs do not fit into one."""
    decision = plan([Need("a", 2, 1, 1)], ROOM)

    assert decision.waiting["a"] == ("no_room", "needs 2 GPUs and 2 CPUs, 1 GPUs and 4 CPUs free")


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 1))), st.integers(0, 8))
def test_what_starts_fits_and_everything_else_is_told_why(shapes, free):
    """Whatever the queue: no more is started than fits, and no job is left without an answer."""
    needs = [Need(f"job{index}", workers, 1, gpus) for index, (workers, gpus) in enumerate(shapes)]
    decision = plan(needs, Room(8, 4, free, 2))

    started = [need for need in needs if need.job_id in decision.start]
    assert sum(need.cpus for need in started) <= free
    assert sum(need.gpus for need in started) <= 2
    assert {*decision.start, *decision.waiting} == {need.job_id for need in needs}
