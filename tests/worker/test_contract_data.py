"""Tests of the data section of a spec: worker/contract/data.py, transforms.py and rules.py."""

import pytest

from worker.contract import SpecError, parse_spec


def _parse(**data):
    return parse_spec({"name": "a", "model": {"name": "resnet18"}, "data": data})


def _stored(**data):
    return {"name": "imagefolder", "path": "/data/photos"} | data


def test_a_spec_comes_back_from_json_as_it_was():
    """With its transforms, and the split that was filled in."""
    spec = _parse(**_stored(transforms=[{"name": "random_crop", "size": [32, 40]}, {"name": "mixup", "alpha": 1}]))

    assert (spec.data.split.validation, spec.data.mixup.alpha) == (0.1, 1)
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert _parse(name="digits").data.split is None


@pytest.mark.parametrize(
    "data",
    [
        {"path": "s3://bucket"},
        {"path": "gs://bucket/photos/part-*.npz"},
        {"path": "s3://bucket/photos/", "profile": "team"},
        {"split": {"validation": "s3://bucket/val"}, "profile": "team"},
    ],
)
def test_data_may_lie_in_an_object_store(data):
    """By the node's own credentials, or by one of the operator's profiles."""
    parsed = _parse(**_stored(**data)).data

    assert (parsed.path, parsed.profile) == (data.get("path", parsed.path), data.get("profile"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "imagefolder"}, r"data; expected data\.path \(imagefolder is read from files\)"),
        ({"name": "digits", "path": "/data"}, r"data; expected no data\.path and no data\.split \(digits is not read from files\)"),
        (_stored(path="photos"), "data.path is photos; expected an absolute path that every worker sees, .*; write it like /data/photos"),
        (_stored(path="/data/../etc"), r"data.path is /data/\.\./etc; expected .*; write the path without \.\."),
        (_stored(path="/a\x00b"), "expected an absolute path"),
        (_stored(path="http://host/a"), "data.path is http://host/a; expected .*; write it like s3://bucket/photos, or mount the data"),
        (_stored(path="s3://bucket/a?profile=x"), r"data.path is s3://bucket/a\?profile=x; expected .*; a profile goes into data.profile"),
        (_stored(path="s3://key:secret@bucket/a"), "expected .*; write it like s3://bucket/photos"),
        (_stored(path="s3://bucket/a/../b"), "expected .*; write it like s3://bucket/photos"),
        (_stored(path="s3:///a"), "expected .*; write it like s3://bucket/photos"),
        (
            _stored(profile="team"),
            r"data; expected a data\.path of s3:// or gs:// \(data\.profile is for object stores\); remove data\.profile",
        ),
        (_stored(path="s3://bucket/a", profile="a/b"), "data.profile is a/b"),
        (_stored(split={"validation": 1}), "data.split.validation is 1; expected a share between 0 and 1, or an absolute path"),
        (_stored(split={"validation": "../val"}), r"data.split.validation is \.\./val; expected an absolute path"),
        (
            _stored(transforms=[{"name": "crop"}]),
            r"data\.transforms\.0\.name is crop; expected one of random_crop, .*did you mean random_crop\?",
        ),
        (_stored(transforms=[{"name": "flip"}, {"name": "flip", "axes": 1}]), r"data\.transforms\.1\.axes is 1; .*did you mean axis\?"),
        (_stored(transforms=[{"name": "resize", "size": 0}]), r"data\.transforms\.0\.size is 0; expected one number, or one per dimension"),
        (_stored(transforms=[{"name": "normalize"}]), "expected mean and std of equal length, or per_sample: true"),
        (_stored(transforms=[{"name": "random_resized_crop", "size": 9, "scale": [1, 0.1]}]), "the smaller number first"),
        (_stored(transforms=[{"name": "mixup"}, {"name": "mixup"}]), "expected at most one mixup; remove one"),
        (_stored(transforms="flip"), "data.transforms is flip; expected a list"),
        (_stored(args={"targets": "masks"}), "expected num_classes with targets: masks, and only there"),
        (_stored(loader_workers=-1), "data.loader_workers is -1; expected a number greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_refused(data, message):
    """By its place, its value, what was expected and what to do."""
    with pytest.raises(SpecError, match=message):
        _parse(**data)
