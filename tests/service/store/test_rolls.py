"""Tests of service/store/rolls.py: a long series read short shows what the whole one shows."""

import math
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.store import rolls
from service.store.ids import new_job_id
from service.store.metrics import take_metrics
from tests.service.store.ranks import spec


async def _job(store) -> str:
    return (await store.jobs.create(new_job_id(), spec()))[0]


async def _say(store, job_id: str, points: list[tuple[int, float]]) -> None:
    async with store._database.write(job_id) as write:
        await take_metrics(write, job_id, [{"step": step, "values": {"loss": value}} for step, value in points])


def test_a_short_series_is_whole(with_store):
    """Nothing is left out that need not be."""

    async def scenario(store):
        job_id = await _job(store)
        points = [(step, 1.0 / step) for step in range(1, 1001)]
        await _say(store, job_id, points)
        assert await store.metrics.points(job_id, "loss", 1000) == points
        assert await store.metrics.points(job_id, "none", 1000) == []

    with_store(scenario)


def test_a_long_series_keeps_every_peak_and_both_ends(with_store, monkeypatch):
    """Each stretch keeps its lowest and highest point, at either level, also in what is not rolled up yet."""
    monkeypatch.setattr(rolls, "MOST_RAW", 1)

    async def scenario(store):
        job_id = await _job(store)
        points = [(step, math.sin(step / 500)) for step in range(3, 9000)]
        points[4321] = (points[4321][0], 50.0)
        points[8990] = (points[8990][0], -50.0)
        for start in range(0, len(points), 700):
            await _say(store, job_id, points[start : start + 700])
        for most in (2, 140, 150):
            found = await store.metrics.points(job_id, "loss", most)
            assert len(found) < 5200 if most == 2 else len(found) < 400
            assert set(found) <= set(points)
            assert found == sorted(found)
            assert {points[0], points[-1], points[4321], points[8990]} <= set(found)

    with_store(scenario)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 90)), min_size=1, max_size=6))
def test_a_series_that_goes_back_and_on_is_the_last_one_said(with_store, batches):
    """A restart does steps again: rolls show the new values, never those that were replaced."""
    with_settings = {"WIDTH": 4, "MOST_RAW": 1}
    old = {name: getattr(rolls, name) for name in with_settings}
    vars(rolls).update(with_settings)

    async def scenario(store):
        job_id = await _job(store)
        truth: dict[int, float] = {}
        for number, (start, length) in enumerate(batches):
            said = [(step, float((step * 7919 + number * 104729) % 1000)) for step in range(start, start + length)]
            await _say(store, job_id, said)
            truth |= dict(said)
        everything = sorted(truth.items())
        for most in (1, 30, 150, 10_000):
            found = await store.metrics.points(job_id, "loss", most)
            assert set(found) <= set(everything)
            assert found == sorted(set(found))
            values = [value for _, value in everything]
            assert (min(values), max(values)) == (min(v for _, v in found), max(v for _, v in found))
            assert (found[0], found[-1])[0] == everything[0]
        assert await store.metrics.points(job_id, "loss", 10_000) == everything

    try:
        with_store(scenario)
    finally:
        vars(rolls).update(old)


def test_many_points_are_read_quickly(with_store):
    """Reading does not grow with the length: what is read for a chart of 10 points is a small part."""

    async def scenario(store):
        job_id = await _job(store)
        for start in range(0, 40_000, 10_000):
            await _say(store, job_id, [(step, float(step % 977)) for step in range(start, start + 10_000)])
        began = time.perf_counter()
        found = await store.metrics.points(job_id, "loss", 10)
        assert len(found) <= 2 * 40_000 // rolls.WIDTH + rolls.WIDTH + 2
        assert time.perf_counter() - began < 1.0

    with_store(scenario)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 420), length=st.integers(0, 420), most=st.sampled_from([2, 8, 40]))
def test_a_part_of_a_series_shows_what_the_whole_one_does_there(with_store, first, length, most):
    """Its own ends, its own peaks, nothing from outside, wherever it is cut; the finer, the shorter it is."""
    small = {"WIDTH": 4, "MOST_RAW": 2}
    old = {name: getattr(rolls, name) for name in small}
    vars(rolls).update(small)
    last = first + length

    async def scenario(store):
        job_id = await _job(store)
        points = [(step, float(step * 7919 % 1000)) for step in range(3, 400) if step % 50 > 5]
        await _say(store, job_id, points)
        found = await store.metrics.points(job_id, "loss", most, (first, last))
        inside = [point for point in points if first <= point[0] <= last]
        assert set(found) <= set(inside)
        assert found == sorted(set(found))
        if inside:
            assert (found[0], found[-1]) == (inside[0], inside[-1])
            values = [value for _, value in inside]
            assert {min(values), max(values)} <= {value for _, value in found}
        if length <= small["MOST_RAW"] * most:
            assert found == inside

    try:
        with_store(scenario)
    finally:
        vars(rolls).update(old)
