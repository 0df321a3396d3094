"""Tests of service/trials.py: what short trials say about the norm of a job."""

import pytest

from service.comparison_table import Row, Score
from service.states import State
from service.store.ids import new_id
from service.trials import Choice, choose, kinds, trial_document
from service.variants import variants
from tests.service.store.ranks import spec
from worker.contract import parse_spec

AUTO = {"norm": {"kind": "auto"}}
OTHERS = {"norm": {"kind": "auto", "args": {"kinds": ["ghost_bn", "layer_norm"]}}}


def _row(kind, accuracy=None, state=State.SUCCEEDED, loss=None):
    scores = {"val/accuracy": accuracy, "val/loss": loss}
    validation = {name: Score(value, value) for name, value in scores.items() if value is not None}
    return Row(kind, f"job_{kind}", state, "", 200, 200, None, validation, None, None, None, None)


@pytest.mark.parametrize(
    ("changes", "rows", "choice"),
    [
        (
            {},
            [_row("sync_bn", 0.91), _row("batch_norm", 0.88), _row("group_norm", 0.9)],
            Choice("sync_bn", "sync_bn: val/accuracy 0.91 against 0.88 batch_norm, 0.9 group_norm after 200 steps"),
        ),
        (
            {},
            [_row("sync_bn", 0.8), _row("batch_norm", 0.8), _row("group_norm", 0.9)],
            Choice("group_norm", "group_norm: val/accuracy 0.9 against 0.8 sync_bn, 0.8 batch_norm after 200 steps"),
        ),
        (
            {"checkpoint": {"keep_best": "val/loss"}},
            [_row("sync_bn", 0.9, loss=0.5), _row("batch_norm", 0.8, loss=0.4)],
            Choice("batch_norm", "batch_norm: val/loss 0.4 against 0.5 sync_bn after 200 steps"),
        ),
        (
            {},
            [_row("sync_bn", 0.99, State.FAILED), _row("batch_norm", 0.8), _row("group_norm", None, None)],
            Choice("batch_norm", "batch_norm: val/accuracy 0.8 against sync_bn failed, group_norm deleted after 200 steps"),
        ),
        (
            {},
            [_row(kind, None, State.CANCELLED) for kind in kinds(spec(**AUTO))],
            Choice("sync_bn", "sync_bn, as no trial gave val/accuracy: sync_bn cancelled, batch_norm cancelled, group_norm cancelled"),
        ),
        (
            {},
            [_row("sync_bn", 0.9), _row("batch_norm", 0.9)],
            Choice("sync_bn", "sync_bn: val/accuracy 0.9 against 0.9 batch_norm after 200 steps"),
        ),
        (
            OTHERS,
            [_row("ghost_bn", None, State.FAILED), _row("layer_norm", None, State.FAILED)],
            Choice("ghost_bn", "ghost_bn, as no trial gave val/accuracy: ghost_bn failed, layer_norm failed"),
        ),
    ],
)  # fmt: skip
def test_the_best_trial_wins_and_says_by_how_much(changes, rows, choice):
    """Highest, or lowest of a loss; the earlier of equals; trials that failed are told of and do not count."""
    assert choose(spec(**(AUTO | changes)), rows) == choice


@pytest.mark.parametrize(("length", "steps"), [({"epochs": 50}, 200), ({"steps": 1000}, 200), ({"steps": 7}, 7)])
def test_a_trial_is_the_job_cut_short(length, steps):
    """Same seed, same data, same rate; one evaluation, at the end, and no re-estimation."""
    job = spec(**AUTO, **length, seed=3, recalibrate={"num_samples": 10}, optimizer={"name": "sgd", "lr": 0.3})
    trial = parse_spec(trial_document(job))

    assert (trial.steps, trial.epochs, trial.recalibrate, trial.checkpoint.every_epochs) == (steps, None, "off", 200)
    same = {"name", "steps", "epochs", "recalibrate", "checkpoint"}
    assert trial.model_dump(exclude=same) == job.model_dump(exclude=same)


def test_trials_are_of_the_kinds_that_the_job_names():
    """The choice's own arguments are no argument of a kind: a trial of each can be made."""
    job = spec(**OTHERS)
    trials = variants(trial_document(job), "norm.kind", kinds(job), new_id("cmp"))

    assert [trial.norm.kind for trial in trials] == ["ghost_bn", "layer_norm"]
    assert trials[0].norm.args == {"virtual_batch_size": 32}
