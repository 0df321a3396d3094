"""A controller killed with SIGKILL right before and right after each thing that it does: what was acknowledged comes to its end, once."""

import contextlib
import statistics

import pytest

from service.client import Unreachable
from service.cluster import Cluster, RunningGang
from tests.support.killing import killing, spec, until
from tests.support.mortal_controller import EFFECTS
from worker.storage.storage import Storage

SERVING_S = 5.0
"""Usual time from the start of a controller until it serves, whatever its predecessor left."""
LONG = 100
# Which job's life leads to an effect, and where the controller before was killed; that of `mortal`, from its beginning, leads to others.
SCRIPTS = {"pause": "paused", "stop": "cancelled"}
BEFORE = dict.fromkeys(("adopt", "identify"), ("after", "assign", 1)) | {"dissolve by name": ("after", "create actor", 1)}
# What has no effect: questions, and what other threads than the reconciler's do on request.
QUESTIONS = {"connect", "disconnect", "is_lost", "room", "nodes", "present", "world_size", "places", "generation", "is_torn"}
QUESTIONS |= {"address", "published", "steps", "jobs", "open", "pins", "read_code", "is_marked"}
OF_RANKS = {"staging", "publish", "remove"}
OF_REQUESTS = {"delete", "pin", "unpin", "put_code", "remove_code"}
OF_RESIZES = {"enlist", "regroup"}
"""Killed in the middle of one in tests/service/test_resizing.py."""
LATER = [("create actor", 2), ("tell", 5), ("kill actor", 2), ("enter state", 2), ("enter state", 3)]
# A fourth state is tried only where both ranks say at once that they train, and the store has not answered the first yet.
POINTS = [*((effect, 1) for effect in EFFECTS), *LATER]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One home for all, so that each controller also finds what earlier ones left."""
    with killing(tmp_path_factory.mktemp("k")) as world:
        yield world


def test_every_effect_has_a_point():
    """What the controller does to cluster and storage is in the table, so the tests below meet it."""
    offered = {name for world in (Cluster, RunningGang, Storage) for name in vars(world) if not name.startswith("_")}
    covered = {name for _, name in EFFECTS.values()}

    assert offered - covered - QUESTIONS - OF_RANKS - OF_REQUESTS - OF_RESIZES == set()


def _keep_killing(world, points, tag):
    """Have one controller after the other killed, each at its point, each with a job more; return the jobs' scripts by key."""
    scripts = {}
    for number, point in enumerate(points):
        key, script = f"{tag}-{number}", SCRIPTS.get(point[1], "mortal")
        scripts[key] = script
        world.kill()
        world.start(point)
        with contextlib.suppress(Unreachable):
            _lead(world, script, key)
        assert world.is_killed(30), f"it never came to {point}"
    return scripts


def _all_end(world, scripts):
    """Have a controller live on; assert that every job ends as it should, one for each key."""
    world.start()
    ids = {key: _lead(world, script, key) for key, script in scripts.items()}
    for key, job_id in ids.items():
        world.ended(job_id, "cancelled" if scripts[key] == "cancelled" else "succeeded")
    made = [job["name"] for job in world.client.jobs()]
    assert {key: made.count(key) for key in scripts} == dict.fromkeys(scripts, 1)


def test_killed_after_each_thing_that_it_does_controllers_bring_every_job_to_its_end(world):
    """One life after the other ends right after an effect, and the next finds it: one job a key, one gang at a time, every event once."""
    points = [point for effect, number in POINTS for point in [*([BEFORE[effect]] if effect in BEFORE else []), ("after", effect, number)]]
    _all_end(world, _keep_killing(world, points, "chain"))
    assert statistics.median(world.serving_s) < SERVING_S


@pytest.mark.soak
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("effect", "number"), POINTS)
def test_killed_there_the_next_controller_brings_the_job_to_its_end(world, when, effect, number):
    """The same of each point by itself, before the effect and after it."""
    points = [*([BEFORE[effect]] if effect in BEFORE else []), (when, effect, number)]
    _all_end(world, _keep_killing(world, points, f"{when}-{effect}-{number}".replace(" ", "-")))


def _lead(world, script, key):
    """Submit a job, and do with it what its script says, as far as it has not been done; return its id."""
    job_id = world.client.submit(spec(script, name=key, **({} if script == "mortal" else {"steps": LONG})), idempotency_key=key)["id"]

    def state():
        return world.client.job(job_id)["state"]

    if script == "paused" and len(world.client.job(job_id)["attempts"]) < 2 and state() != "succeeded":
        until(lambda: state() in {"running", "pausing", "paused"}, 30, "the job to run", world.home)
        world.client.pause(job_id)
        until(lambda: state() == "paused", 30, "the pause", world.home)
        world.client.resume(job_id)
    if script == "cancelled" and state() not in {"cancelling", "cancelled"}:
        until(lambda: state() == "running", 30, "the job to run", world.home)
        world.client.cancel(job_id)
    return job_id
