"""Tests of service/store/leases.py and of writing under a lease."""

import asyncio

import pytest

from service.states import State
from service.store.errors import LeaseLostError
from service.store.ids import new_job_id
from tests.service.store.ranks import spec


def test_one_of_many_takers_has_the_lease(with_store):
    """However many controllers ask at once, each job has one."""

    async def scenario(store):
        names = [f"job/{number}" for number in range(10)]
        had = await asyncio.gather(*(store.leases.take(names, f"controller-{number}", 60) for number in range(6)))
        assert sorted(name for each in had for name in each) == names
        assert await store.leases.held() == {name: lease.holder for each in had for name, lease in each.items()}
        assert all(lease.term == 1 for each in had for lease in each.values())

    with_store(scenario)


def test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_term(with_store):
    """A controller that stopped renewing has lost it; one that renews keeps it."""

    async def scenario(store):
        await store.leases.take(["a", "b"], "old", 0.05)
        await store.leases.take(["c"], "busy", 60)
        await asyncio.sleep(0.06)
        taken = await store.leases.take(["a", "c"], "new", 60)
        assert {name: (lease.holder, lease.term) for name, lease in taken.items()} == {"a": ("new", 2)}
        assert await store.leases.renew("old", 60) == set()
        assert await store.leases.renew("busy", 60) == {"c"}

    with_store(scenario)


def test_what_is_given_back_can_be_had_at_once(with_store):
    """A controller that ends well keeps nobody waiting."""

    async def scenario(store):
        await store.leases.take(["a", "b"], "old", 60)
        await store.leases.give_back("old", ["a"])
        assert set(await store.leases.take(["a", "b"], "new", 60)) == {"a"}

    with_store(scenario)


def test_a_write_under_a_lost_lease_is_refused_and_leaves_nothing(with_store):
    """A controller that was stopped past its lease wakes up and finds its writes refused; its successor's are stored."""

    async def scenario(store):
        job_id, _ = await store.jobs.create(new_job_id(), spec())
        old = (await store.leases.take(["job"], "old", 60))["job"]
        assert await store.under(old).attempts.begin(job_id, "first", 2) is not None
        assert await store.leases.renew("old", 0) == {"job"}, "which has it run out now, however slow the machine is"
        with pytest.raises(LeaseLostError, match="term 1 is not held by old any more"):
            await store.under(old).jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="late")
        new = (await store.leases.take(["job"], "new", 60))["job"]
        with pytest.raises(LeaseLostError):
            await store.under(old).jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="late")
        assert (await store.jobs.get(job_id)).state is State.STARTING
        assert await store.under(new).jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="training")

    with_store(scenario)


def test_a_lease_cannot_be_taken_in_the_middle_of_a_write_under_it(with_store):
    """The write and the taking come one after the other, so a successor sees all that its predecessor stored."""

    async def scenario(store):
        lease = (await store.leases.take(["job"], "old", 0.2))["job"]
        order = []

        async def write():
            async with store._database.under(lease).write("x"):
                await asyncio.sleep(0.4)
                order.append("written")

        async def take():
            await asyncio.sleep(0.25)
            while not await store.leases.take(["job"], "new", 60):
                await asyncio.sleep(0.01)
            order.append("taken")

        await asyncio.gather(write(), take())
        assert order == ["written", "taken"]

    with_store(scenario)
