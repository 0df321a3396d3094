"""Tests of service/derivation.py: what the job that is made of a checkpoint is asked to do."""

from dataclasses import replace

import pytest

from service import derivation
from service.errors import InvalidError
from service.states import State
from service.store.records import Job, Progress
from tests.service.store.ranks import AT, spec
from worker.contract import parse_spec

ID = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
ORIGIN = f"{ID}/checkpoints/10"


def job(**changes):
    """A job of a spec."""
    found = spec(
        batch_size=64,
        epochs=3,
        average={"kind": "ema"},
        compile="norm",
        norm={"kind": "sync_bn", "group_size": 2},
        resources={"workers": 4},
        **changes,
    )
    return Job(
        id=ID, project="default", name=found.name, state=State.SUCCEEDED, reason="", message="", labels={"team": "a"}, priority=3,
        created_at=AT, started_at=AT, finished_at=AT, progress=Progress(0), metrics={}, world_size=4, fence=1, attempt=1,
        spec_json=found.model_dump_json(), last_seq=1, edition=1,
    )  # fmt: skip


MADE = {
    "fork": lambda one: derivation.fork(one, 10),
    "recalibrated": lambda one: derivation.recalibration(one, 10, 500, "exact"),
    "exported": lambda one: derivation.export(one, 10, ["onnx"]),
}


@pytest.mark.parametrize("what", MADE)
def test_each_is_a_valid_spec_that_says_where_it_is_from(what):
    """By number, under a name that fits, with the labels and the priority that the job has now."""
    made = parse_spec(MADE[what](job(name="x" * 128)))
    assert (made.initialize_from, made.labels, made.priority) == (ORIGIN, {"team": "a"}, 3)
    assert made.name == f"{'x' * (127 - len(what))}-{what}"


def test_a_fork_differs_in_nothing_else():
    """Name, origin, labels, priority."""
    one = job()
    made = derivation.fork(one, 10)
    assert {key for key in made if made[key] != one.document.get(key)} == {"name", "initialize_from", "labels", "priority"}


def test_what_trains_nothing_runs_on_any_number_of_workers():
    """Re-estimation on as many as trained, export on one; both without what belongs to training."""
    recalibrated, exported = (parse_spec(MADE[what](job())) for what in ("recalibrated", "exported"))
    for made in (recalibrated, exported):
        assert (made.steps, made.epochs, made.average, made.compile, made.norm.group_size) == (0, None, None, "off", "all")
        assert made.batch_size == 64
    assert (recalibrated.resources.workers, recalibrated.recalibrate.num_samples, recalibrated.export) == (4, 500, ())
    assert (exported.resources.workers, exported.recalibrate, exported.export) == (1, "off", ("onnx",))
    assert parse_spec(derivation.changed(MADE["recalibrated"](job()), {"resources.workers": 3})).resources.workers == 3


@pytest.mark.parametrize(("asked", "expected"), [({"steps": 5}, (None, 5)), ({"epochs": 7}, (7, None)), ({}, (3, None))])
def test_a_new_length_of_training_takes_the_place_of_the_old_one(asked, expected):
    """In steps or in epochs."""
    made = parse_spec(derivation.changed(derivation.fork(job(), 10), asked))
    assert (made.epochs, made.steps) == expected


def test_training_goes_on_from_what_was_re_estimated():
    """A fork of a job without steps trains once it is told how long; its exports are not asked for again."""
    exported = job()
    again = replace(exported, spec_json=parse_spec(MADE["exported"](exported)).model_dump_json())
    made = parse_spec(derivation.changed(derivation.fork(again, 0), {"epochs": 2, "optimizer.lr": 0.01}))
    assert (made.epochs, made.steps, made.export, made.optimizer.lr) == (2, None, (), 0.01)


def test_a_change_does_not_reach_the_job_that_it_is_made_of():
    """Sections are shared by nobody."""
    one = job()
    derivation.changed(derivation.fork(one, 10), {"optimizer.lr": 9.0})
    assert one.document["optimizer"]["lr"] == 0.1


def test_a_path_that_leads_nowhere_is_named():
    """With the key under which it was sent."""
    with pytest.raises(InvalidError) as caught:
        derivation.changed(derivation.fork(job(), 10), {"batch_size.x": 1})
    assert caught.value.problems[0].loc == "set.batch_size.x"
