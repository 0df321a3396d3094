"""Tests of service/norm_choice.py and service/store/norm_choices.py: `norm.kind: auto`, on a real store and a cluster in memory."""

import asyncio
from pathlib import Path

from service import jobs
from service.states import State
from tests.support.world import World, run
from worker.contract import EventType

AUTO = {"norm": {"kind": "auto", "eps": 1e-3}, "steps": 1000}
SCORES = {"sync_bn": 0.8, "batch_norm": 0.7, "group_norm": 0.9}


async def _trials(world: World) -> dict[str, str]:
    """Wait until the one comparison of trials is there; return its jobs by their kinds."""
    async with asyncio.timeout(8):
        while not (found := await world.store.comparisons.page(None, 5)):
            await asyncio.sleep(0.005)
    assert len(found) == 1
    return {variant.value: variant.job_id for variant in found[0].variants}


async def _train(world: World, trials: dict[str, str]) -> None:
    for kind, job_id in trials.items():
        gang = await world.train(job_id)
        assert gang.assignments[0].spec.steps == 200
        progress = {"step": 200, "total_steps": 200, "epoch": 1.0, "samples": 1}
        gang.say(EventType.METRICS, {**progress, "values": {"val/accuracy": SCORES[kind]}}, [0])
        gang.end()
        await world.until(job_id, State.SUCCEEDED)


def test_a_job_that_asks_for_it_runs_with_the_norm_of_the_best_trial(tmp_path: Path):
    """It waits for its trials and says so; it starts with the best kind, and its history says why. A restart in between changes nothing."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id = await world.submit(**AUTO)
            trials = await _trials(world)
        async with world.controller():
            waiting = await world.store.jobs.get(job_id)
            assert (list(trials), waiting.state, waiting.reason) == (list(SCORES), State.QUEUED, "choosing_norm")
            assert waiting.message.startswith("waits for")
            await _train(world, await _trials(world))
            gang = await world.cluster.gang(job_id)
            history = (await world.store.jobs.transitions_of([job_id]))[job_id]

            norm = gang.assignments[0].spec.norm
            assert (norm.kind, norm.eps, norm.args) == ("group_norm", 1e-3, {"num_groups": None})
            assert [change.reason for change in history][:2] == ["choosing_norm", "norm_chosen"]
            assert history[1].message == "group_norm: val/accuracy 0.9 against 0.8 sync_bn, 0.7 batch_norm after 200 steps"
            assert await world.store.norm_choices.open() == []
            gang.end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def test_who_cancels_a_job_cancels_its_trials(tmp_path: Path):
    """No trial goes on for nobody."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id = await world.submit(**AUTO)
            trials = list((await _trials(world)).values())
            gangs = [await world.train(trial) for trial in trials]
            await jobs.cancel(world.store, job_id)
            for trial in trials:
                await world.until(trial, State.CANCELLED, State.CANCELLING)
            for gang in gangs:
                gang.end("stopped")
            for trial in trials:
                await world.until(trial, State.CANCELLED)
            assert await world.store.norm_choices.open() == []

    run(tmp_path, scenario)


def test_a_job_that_cannot_be_tried_gets_the_default(tmp_path: Path):
    """A label more than a job may have: no trial, and the job runs all the same and says why."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id = await world.submit(**AUTO, labels={f"l{number}": "x" for number in range(64)})
            gang = await world.cluster.gang(job_id)
            history = (await world.store.jobs.transitions_of([job_id]))[job_id]

            assert gang.assignments[0].spec.norm.kind == "sync_bn"
            assert history[1].message.startswith("sync_bn, as no trial can be made: spec.labels")
            gang.end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)
