"""Tests of worker/contract/spec.py and worker/contract/validation.py: what a user may write, and what is said of the rest."""

from typing import Any

import pytest
import yaml

from worker.contract import DATASETS, MODELS, SpecError, parse_spec

MINIMAL = {"name": "digits", "model": {"name": "resnet18"}, "data": {"name": "digits"}}
WHOLE = """
name: digits
seed: 0
task: classification
model: {name: resnet18, args: {stem: small}}
norm: {kind: sync_bn, momentum: 0.1, eps: 1.0e-5, group_size: all, placement: before_activation}
data: {name: digits}
batch_size: 128
epochs: 10
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4, nesterov: true}
schedule: {name: cosine, warmup_epochs: 1}
precision: fp32
channels_last: false
compile: off
accumulate: 1
resources: {workers: 2, gpus_per_worker: 0, cpus_per_worker: 1}
checkpoint: {every_epochs: 1, keep_last: 3, keep_best: val/accuracy}
recalibrate: {num_samples: 10000}
retries: {recoveries: 10, restarts: 3}
priority: 0
timeout_s: 86400
labels: {team: vision}
initialize_from: job_01J8ZQ4WZ0V5K3T9M2N7R6C1XH/checkpoints/latest
"""


def _problem(**change: Any):
    with pytest.raises(SpecError) as caught:
        parse_spec({**MINIMAL, **change})
    assert len(caught.value.problems) == 1, caught.value.problems
    return caught.value.problems[0]


def test_the_documented_spec_is_accepted_as_yaml_reads_it():
    """Every key of the documentation works, `compile: off` included, which YAML reads as false."""
    spec = parse_spec(yaml.safe_load(WHOLE))

    assert spec.compile == "off"
    assert spec.optimizer.weight_decay == 5e-4
    assert spec.model.args == {"stem": "small", "width": 64}


def test_a_resolved_spec_is_a_spec():
    """What the service answers can be submitted again and means the same."""
    spec = parse_spec(yaml.safe_load(WHOLE))

    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_ten_epochs_unless_told():
    """A spec that names neither epochs nor steps trains ten epochs; one that names steps has no epochs."""
    assert parse_spec(MINIMAL).epochs == 10
    assert parse_spec({**MINIMAL, "steps": 5}).epochs is None


def test_an_optimizer_without_a_name_is_sgd():
    """One key can be set without repeating the default."""
    assert parse_spec({**MINIMAL, "optimizer": {"lr": 0.3}}).optimizer.lr == 0.3


@pytest.mark.parametrize(
    ("change", "loc", "value", "expected", "remedy"),
    [
        ({"epoch": 3}, "epoch", 3, "a known key", "did you mean epochs?"),
        ({"xyz": 3}, "xyz", 3, "a known key", "remove it"),
        ({"model": {"name": "resnet18", "args": {"stm": "small"}}}, "model.args.stm", "small", "a known key", "did you mean stem?"),
        ({"optimizer": {"name": "sgd", "lrr": 1}}, "optimizer.lrr", 1, "a known key", "did you mean lr?"),
        ({"recalibrate": {"num_sample": 1}}, "recalibrate.num_sample", 1, "a known key", "did you mean num_samples?"),
        ({"optimizer": {"name": "adam"}}, "optimizer.name", "adam", "one of sgd, adamw", "did you mean adamw?"),
        ({"norm": {"kind": "syncbn"}}, "norm.kind", "syncbn", "one of sync_bn", "did you mean sync_bn?"),
        ({"model": {"name": "resnet19"}}, "model.name", "resnet19", "one of resnet18", "did you mean resnet18?"),
        ({"data": {"name": "digit"}}, "data.name", "digit", "one of digits", "did you mean digits?"),
        ({"precision": "bf_16"}, "precision", "bf_16", "'bf16'", "did you mean bf16?"),
        ({"batch_size": "128"}, "batch_size", "128", "a whole number", "set batch_size to a whole number"),
        ({"batch_size": 0}, "batch_size", 0, "a number greater than or equal to 1", "set batch_size"),
        ({"seed": True}, "seed", True, "a whole number", "set seed"),
        ({"seed": 2**64}, "seed", 2**64, "less than", "set seed"),
        ({"model": "resnet18"}, "model", "resnet18", "a mapping of keys to values", "set model"),
        ({"norm": {"group_size": "x"}}, "norm.group_size", "x", "'all' or a whole number", "set norm.group_size"),
        ({"recalibrate": "on"}, "recalibrate", "on", "a mapping of keys to values or 'off'", "set recalibrate"),
        ({"resources": {"workers": {"min": 1, "max": 2}}}, "resources.workers", None, "a whole number of workers", "set resources.workers"),
        ({"labels": {"a b": "x"}}, "labels.a b", "a b", "a label key", "write it like team/vision"),
        ({"name": ""}, "name", "", "1 to 128 printable characters", "write it like"),
        ({"name": "a\nb"}, "name", "a\nb", "1 to 128 printable characters", "write it like"),
        ({"initialize_from": "x"}, "initialize_from", "x", "JOB_ID/checkpoints/STEP", "write it like"),
        ({"timeout_s": float("nan")}, "timeout_s", None, "a finite number", "set timeout_s"),
    ],
)
def test_a_problem_names_key_value_expectation_and_remedy(change, loc, value, expected, remedy):
    """Whoever mistypes is told where, what was found, what belongs there and what to do."""
    problem = _problem(**change)

    assert problem.loc == loc
    assert problem.value == value or value is None
    assert expected in problem.expected
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"batch_size": 12, "resources": {"workers": 16}},
            "batch_size 12 cannot be split over 16 workers with at least one sample each); use at most 12 workers",
        ),
        ({"epochs": 1, "steps": 2}, "epochs and steps are both set"),
        ({"norm": {"group_size": 2}, "resources": {"workers": 3}}, "norm.group_size 2 does not divide 3 workers"),
        ({"optimizer": {"name": "sgd", "momentum": 0, "nesterov": True}}, "nesterov needs a momentum"),
    ],
)
def test_contradictions_are_found(change, sentence):
    """What each key allows alone may be impossible together."""
    assert sentence in str(_problem(**change))


def test_every_problem_is_reported_at_once():
    """A user mends a spec in one go."""
    with pytest.raises(SpecError) as caught:
        parse_spec({**MINIMAL, "epoch": 1, "batch_size": -1, "norm": {"kind": "bn"}})

    assert {problem.loc for problem in caught.value.problems} == {"epoch", "batch_size", "norm.kind"}


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_document_that_is_no_mapping_is_refused(raw):
    """A list or a sentence is no job spec."""
    with pytest.raises(SpecError, match="a mapping of keys to values"):
        parse_spec(raw)


@pytest.mark.parametrize("key", ["name", "model", "data"])
def test_name_model_and_data_are_required(key):
    """There is no default for what a job is called, trains, and trains on."""
    with pytest.raises(SpecError, match=f"add {key}"):
        parse_spec({other: value for other, value in MINIMAL.items() if other != key})


def test_the_arguments_of_every_name_have_a_schema():
    """GET /v1/models and /v1/datasets can describe everything."""
    for entry in [*MODELS.values(), *DATASETS.values()]:
        assert entry.args.model_json_schema()["properties"]
