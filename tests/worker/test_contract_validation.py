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

SEGMENTATION = {"task": "segmentation", "model": {"name": "unet"}, "data": {"name": "synthetic", "args": {"task": "segmentation"}}}


def ghost(args: dict[str, Any]) -> dict[str, Any]:
    """A spec with ghost_bn and these arguments."""
    return {"norm": {"kind": "ghost_bn", "args": args}}


def auto(kinds: list[str]) -> dict[str, Any]:
    """A spec whose norm is to be chosen among these."""
    return {"norm": {"kind": "auto", "args": {"kinds": kinds}}}


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
        (ghost({"virtual_batch_siz": 4}), "norm.args.virtual_batch_siz", 4, "a known key", "did you mean virtual_batch_size?"),
        (ghost({"virtual_batch_size": 0}), "norm.args.virtual_batch_size", 0, "greater than or equal to 1", "set norm.args.virtual_batch"),
        ({"norm": {"args": {"num_groups": 4}}}, "norm.args.num_groups", 4, "a known key", "remove it; known keys: none"),
        (auto(["sync_bn", "gost_bn"]), "norm.args.kinds", None, "kinds among sync_bn, batch_norm, ghost_bn", "remove gost_bn"),
        (auto(["sync_bn", "sync_bn"]), "norm.args.kinds", None, "each kind once", "remove the second one"),
        (auto(["sync_bn"]), "norm.args.kinds", None, "at least 2 items", "set norm.args.kinds"),
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
        (
            {"resources": {"workers": {"min": 0, "max": 2}}},
            "resources.workers.min",
            0,
            "greater than or equal to 1",
            "set resources.workers.min",
        ),
        ({"resources": {"workers": {"mni": 1, "min": 1, "max": 2}}}, "resources.workers.mni", 1, "a known key", "did you mean min?"),
        ({"resources": {"workers": "two"}}, "resources.workers", "two", "a whole number or a mapping", "set resources.workers"),
        ({"labels": {"a b": "x"}}, "labels.a b", "a b", "a label key", "write it like team/vision"),
        ({"name": ""}, "name", "", "1 to 128 printable characters", "write it like"),
        ({"name": "a\nb"}, "name", "a\nb", "1 to 128 printable characters", "write it like"),
        ({"task": "segmentaton"}, "task.name", "segmentaton", "one of classification, segmentation", "did you mean segmentation?"),
        ({"task": "code:tasks"}, "task.name", "code:tasks", "code:MODULE:NAME", "use code:MODULE:NAME"),
        ({"task": {"args": {"label_smothing": 0.1}}}, "task.args.label_smothing", 0.1, "a known key", "did you mean label_smoothing?"),
        ({"model": {"name": "torchvison:x"}}, "model.name", "torchvison:x", "one of resnet18, ", "use one of"),
        ({"model": {"name": "unet"}}, "model.name", "unet", "one for classification: resnet18, ", "choose one of these"),
        ({"average": {"kind": "emma"}}, "average.kind", "emma", "one of ema, swa", "did you mean ema?"),
        ({"average": {"kind": "ema", "deca": 1}}, "average.deca", 1, "a known key", "did you mean decay?"),
        ({"checkpoint": {"keep_best": "val/mae"}}, "checkpoint.keep_best", "val/mae", "a metric with its direction", "name the direction"),
        ({"checkpoint": {"keep_best": "val/miou"}}, "checkpoint.keep_best", "val/miou", "a metric of classification", "choose one"),
        ({"compile": "modl"}, "compile", "modl", "'model'", "did you mean model?"),
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
        ({"norm": {"group_size": 2}, "resources": {"workers": {"min": 2, "max": 4}}}, "norm.group_size 2 does not divide every number"),
        ({"resources": {"workers": {"min": 3, "max": 2}}}, "workers.min 3 is more than workers.max 2"),
        ({"batch_size": 12, "resources": {"workers": {"min": 2, "max": 16}}}, "batch_size 12 cannot be split over 16 workers"),
        ({"norm": {"kind": "batch_renorm", "args": {"r_end": 10}}}, "start 5000 is after r_end 10 or d_end 25000); set start: 10 or less"),
        ({"optimizer": {"name": "sgd", "momentum": 0, "nesterov": True}}, "nesterov needs a momentum"),
        ({"compile": "model", "accumulate": 2}, "compile: model with accumulate compiles anew in every step"),
        ({"model": {"name": "hybrid", "args": {"width": 9, "heads": 5}}}, "5 heads do not divide 36 channels"),
        ({"task": "segmentation", "model": {"name": "unet"}, "data": {"name": "synthetic"}}, "set data.args.task to segmentation"),
        (SEGMENTATION | {"task": {"name": "segmentation", "args": {"cross_entropy": 0, "dice": 0}}}, "cross_entropy and dice are both 0"),
    ],
)
def test_contradictions_are_found(change, sentence):
    """What each key allows alone may be impossible together."""
    assert sentence in str(_problem(**change))


@pytest.mark.parametrize(
    ("change", "best"),
    [
        ({}, ("val/accuracy", "max")),
        (SEGMENTATION, ("val/miou", "max")),
        ({"task": "code:mine.tasks:Regression"}, ("val/loss", "min")),
        (SEGMENTATION | {"checkpoint": {"keep_best": "val/iou/2"}}, ("val/iou/2", "max")),
        ({"task": "code:mine.tasks:Regression", "checkpoint": {"keep_best": {"metric": "val/mae", "mode": "min"}}}, ("val/mae", "min")),
    ],
)
def test_the_best_checkpoint_is_told_by_a_metric_of_the_task(change, best):
    """Its main one unless told; of a task of the user's own, any, with its direction."""
    found = parse_spec({**MINIMAL, **change}).checkpoint.keep_best

    assert (found.metric, found.mode) == best


@pytest.mark.parametrize("name", ["torchvision:resnet50", "timm:efficientnet_b0.ra_in1k", "transformers:resnet", "code:mine.models:build"])
def test_names_that_only_a_worker_can_look_up_are_taken_as_they_are(name):
    """The controller has neither the user's code nor the libraries; arguments are theirs to check."""
    assert parse_spec({**MINIMAL, "model": {"name": name, "args": {"x": 1}}}).model.args == {"x": 1}


def test_each_kind_of_norm_has_arguments_of_its_own():
    """What is left out has its default; a chosen kind's are those of the choice."""
    assert parse_spec({**MINIMAL, **ghost({})}).norm.args == {"virtual_batch_size": 32}
    assert parse_spec({**MINIMAL, "norm": {"kind": "group_norm"}}).norm.args == {"num_groups": None}
    assert parse_spec({**MINIMAL, "norm": {"kind": "auto"}}).norm.args == {"kinds": ["sync_bn", "batch_norm", "group_norm"]}


def test_averaging_can_be_switched_off():
    """Off, as YAML reads it, is none."""
    assert parse_spec({**MINIMAL, "average": False}).average is None
    assert parse_spec({**MINIMAL, "average": {"kind": "ema"}}).average.decay == 0.999


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
