"""A controller killed with SIGKILL right before and right after each thing that it does: whatever was acknowledged comes to its end, once."""

import contextlib

import pytest

from service.client import Unreachable
from service.cluster import Cluster, RunningGang
from tests.support.killing import killing, spec, until
from tests.support.mortal_controller import EFFECTS
from worker.storage.storage import Storage

SERVING_S = 5.0
LONG = 40
# Which job's life leads to the point; that of `mortal` to all others.
SCRIPTS = {"pause": "paused", "stop": "cancelled", "adopt": "adopted", "dissolve by name": "adopted"}
# What has no effect: questions, and what other threads than the reconciler's do on request.
QUESTIONS = {"connect", "disconnect", "is_lost", "room", "nodes", "present", "world_size", "generation", "is_torn"}
QUESTIONS |= {"address", "published", "steps", "jobs", "open", "pins", "read_code", "is_marked"}
OF_RANKS = {"staging", "publish", "remove"}
OF_REQUESTS = {"delete", "pin", "unpin", "put_code"}
TWICE = [("create actor", 2), ("identify", 2), ("tell", 5), ("kill actor", 2), ("enter state", 2), ("enter state", 3), ("enter state", 4)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One home for all, so that each controller also finds what earlier ones left."""
    with killing(tmp_path_factory.mktemp("k")) as world:
        yield world


def test_every_effect_has_a_point():
    """What the controller does to cluster and storage is in the table, so the tests below meet it."""
    offered = {name for world in (Cluster, RunningGang, Storage) for name in vars(world) if not name.startswith("_")}
    covered = {name for _, name in EFFECTS.values()}

    assert offered - covered - QUESTIONS - OF_RANKS - OF_REQUESTS == set()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("effect", "number"), [*((effect, 1) for effect in EFFECTS), *TWICE])
def test_killed_there_the_next_controller_brings_everything_to_its_end(world, when, effect, number):
    """One job, one gang at a time, every event once, no process left, serving again at once."""
    script, key = SCRIPTS.get(effect, "mortal"), f"{when}-{effect}-{number}".replace(" ", "-")
    world.kill()
    if script == "adopted":
        world.start()
        world.client.submit(_spec(script, key), idempotency_key=key)
        until(lambda: world.host.named(), 30, "the ranks", world.home)
        world.kill()
    world.start((when, effect, number))
    acknowledged = None
    with contextlib.suppress(Unreachable):
        acknowledged = _lead(world, script, key)
    assert world.is_killed(30), "it never came there"

    assert world.start() < SERVING_S
    job_id = world.client.submit(_spec(script, key), idempotency_key=key)["id"]
    assert acknowledged in {None, job_id}
    _lead(world, script, key)
    job = world.ended(job_id, "cancelled" if script == "cancelled" else "succeeded")
    assert len([one for one in world.client.jobs() if one["name"] == key]) == 1
    assert len(job["attempts"]) <= (3 if script == "paused" else 2)


def _spec(script, key):
    return spec(script, name=key) if script == "mortal" else spec(script, LONG, name=key)


def _lead(world, script, key):
    """Submit a job, and do with it what its script says, as far as it has not been done."""
    job_id = world.client.submit(_spec(script, key), idempotency_key=key)["id"]

    def state():
        return world.client.job(job_id)["state"]

    if script == "paused" and len(world.client.job(job_id)["attempts"]) < 2:
        until(lambda: state() in {"running", "pausing", "paused"}, 30, "the job to run", world.home)
        world.client.pause(job_id)
        until(lambda: state() == "paused", 30, "the pause", world.home)
        world.client.resume(job_id)
    if script == "cancelled" and state() not in {"cancelling", "cancelled"}:
        until(lambda: state() == "running", 30, "the job to run", world.home)
        world.client.cancel(job_id)
    return job_id
