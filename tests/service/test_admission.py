"""Tests of service/admission.py: what a token may ask for."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admission import admit, foreign_paths, is_below, runs_user_code
from service.errors import ForbiddenError, InvalidError
from service.scopes import Scope
from service.store.ids import new_id
from service.store.records import Bundle, Token
from worker.contract import parse_spec

SPEC = parse_spec({"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}})
ROOTS = ["/data", "s3://lake/vision"]


def _token(*scopes, project="default"):
    return Token(new_id("tok"), "t", project, frozenset(scopes), datetime.now(UTC))


def _spec(**changes):
    return SPEC.model_copy(update=changes)


def _with(section, **args):
    return _spec(**{section: getattr(SPEC, section).model_copy(update={"args": args})})


@pytest.mark.parametrize(
    ("spec", "is_own"),
    [
        (SPEC, False),
        (_spec(code="code_01ARZ3NDEKTSV4RRFFQ69G5FAV"), True),
        (_spec(task=SPEC.task.model_copy(update={"name": "code:mine.tasks:Task"})), True),
        (_spec(model=SPEC.model.model_copy(update={"name": "code:mine.models:build"})), True),
        (_spec(data=SPEC.data.model_copy(update={"name": "code:mine.data:Set"})), True),
    ],
)
def test_code_of_ones_own_needs_the_scope(with_store, spec, is_own):
    """By an uploaded bundle, or by a name of a module."""
    assert runs_user_code(spec) is is_own

    async def scenario(store):
        if is_own:
            with pytest.raises(ForbiddenError, match="code"):
                await admit(store, spec, _token(Scope.READ, Scope.SUBMIT), [])
        else:
            await admit(store, spec, _token(Scope.SUBMIT), [])

    with_store(scenario)


def test_code_must_be_there_and_the_projects_own(with_store):
    """A foreign bundle is one that is not there."""

    async def scenario(store):
        bundle = Bundle(new_id("code"), "a", "0" * 64, 1, 1, datetime.now(UTC), datetime.now(UTC))
        await store.bundles.add(bundle)
        spec = _spec(code=bundle.id)
        await admit(store, spec, _token(Scope.CODE, project="a"), [])
        await admit(store, spec, _token(Scope.ADMIN, project="b"), [])
        for wrong in (spec, _spec(code=new_id("code"))):
            with pytest.raises(InvalidError, match=wrong.code):
                await admit(store, wrong, _token(Scope.CODE, project="b"), [])

    with_store(scenario)


@pytest.mark.parametrize(
    "place", ["/data", "/data/", "/data/a/b", "file:///data/a", "s3://lake/vision", "s3://lake/vision/train/0.tar", "/data/~x"]
)
def test_a_place_below_a_root_is_taken(place):
    """A root too."""
    assert is_below(place, ROOTS)
    assert foreign_paths(_with("data", path=place), ROOTS) == []


@pytest.mark.parametrize(
    "place",
    [
        "", "/", "/etc/passwd", "/database", "/data/../etc", "/data/a/../../etc", "//data", "/data//a", "/data/./a", "data/a",
        "~/x", "../x",        "/proc/self/root/data", "/data/%2e%2e/etc", "/data/a?x", "/data/a#x", "/data/a\0b", "\\\\server\\share", "file://host/data",
        "file:///etc/passwd", "file:/etc", "http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]/", "http://2852039166/",
        "s3://lake/visionary", "s3://lake/vision/../secret", "s3://lake@evil/vision", "s3://other/vision", "gs://lake/vision",
        "simplecache::s3://lake/vision", "zip://x::/data/a", "/data/a::http://evil", "s3://lake/vision::file:///etc", "S3://lake/vision", "FILE:///data",
    ],
)  # fmt: skip
def test_a_place_elsewhere_is_not(place):
    """Traversal, look-alikes, other schemes, chained and encoded ones, addresses of the cloud's own services."""
    assert not is_below(place, ROOTS)
    assert [problem.loc for problem in foreign_paths(_with("data", path=place), ROOTS)] == ["data.args.path"]


def test_a_place_is_found_wherever_it_stands():
    """In lists and sections, under any name; a name of a model is none."""
    args = {"deep": [{"train_path": "x"}, "/etc"], "weights": "http://evil/x", "name": "microsoft/resnet-50", "width": 3}

    assert [problem.loc for problem in foreign_paths(_with("model", **args), ROOTS)] == [
        "model.args.deep.0.train_path",
        "model.args.deep.1",
        "model.args.weights",
    ]


def test_without_roots_an_admin_may_name_any_place_and_others_none(with_store):
    """A single user's own machine needs no setting; once there are roots, they hold for all."""

    async def scenario(store):
        spec = _with("data", path="/home/me/images")
        await admit(store, spec, _token(Scope.ADMIN), [])
        for owner, roots in ((_token(Scope.SUBMIT), []), (_token(Scope.ADMIN), ROOTS), (_token(Scope.SUBMIT), ROOTS)):
            with pytest.raises(InvalidError, match="/home/me/images"):
                await admit(store, spec, owner, roots)
        await admit(store, spec, _token(Scope.SUBMIT), ["/home/me"])

    with_store(scenario)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "%2e%2e", "..\\", "data", "\0", "a::b", "?", "#"]), max_size=6),
    st.sampled_from(["/", "/data/", "file:///data/"]),
)
def test_no_way_of_writing_leads_out_of_a_root(parts, start):
    """What is taken names, resolved as POSIX does, something below the root."""
    import posixpath

    place = start + "/".join(parts)
    if is_below(place, ["/data"]):
        resolved = posixpath.normpath(place.removeprefix("file://"))
        assert resolved == "/data" or resolved.startswith("/data/")
