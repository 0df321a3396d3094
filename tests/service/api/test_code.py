"""Tests of service/api/code.py over HTTP, and of jobs that name what was uploaded."""

import asyncio

import pytest

from service.scopes import Scope
from tests.service.api.identities import OTHER, token
from tests.service.api.world import running
from tests.service.store.ranks import SPEC
from tests.support.archives import EVIL_NAMES, GOOD, tar_gz, zipped

ZIP = {"Content-Type": "application/zip"}
TAR_GZ = {"Content-Type": "application/gzip"}


def test_code_is_uploaded_and_named_in_a_spec(world):
    """201 the first time, 200 when the same comes again, by whichever format."""
    first = world.client.post("/v1/code", content=zipped(GOOD), headers=ZIP)
    again = world.client.post("/v1/code", content=tar_gz(GOOD), headers=TAR_GZ)

    assert (first.status_code, again.status_code) == (201, 200)
    assert {**first.json(), "uploaded_at": again.json()["uploaded_at"]} == again.json()
    assert first.json()["id"].startswith("code_")
    assert world.submit(code=first.json()["id"])["spec"]["code"] == first.json()["id"]


def test_code_that_is_not_there_is_refused(world):
    """Unknown, foreign, or no id at all; a dry run says so too."""
    headers = token(world, Scope.SUBMIT, Scope.CODE, project=OTHER)
    ours = world.client.post("/v1/code", content=zipped(GOOD), headers=ZIP).json()["id"]
    for code in (ours, "code_01ARZ3NDEKTSV4RRFFQ69G5FAV", "code_1", "../x"):
        for query in ({}, {"dry_run": "true"}):
            answer = world.client.post("/v1/jobs", params=query, json=SPEC | {"code": code}, headers=headers)
            assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, "code")


def test_a_job_with_code_needs_the_scope(world):
    """Submitting alone is not enough."""
    code = world.client.post("/v1/code", content=zipped(GOOD), headers=ZIP).json()["id"]
    answer = world.client.post("/v1/jobs", json=SPEC | {"code": code}, headers=token(world, Scope.SUBMIT))

    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    assert world.client.post("/v1/jobs", json=SPEC | {"code": code}, headers=token(world, Scope.SUBMIT, Scope.CODE)).status_code == 201


@pytest.mark.parametrize("name", [name for name in EVIL_NAMES if name.strip("/.") and "\udcff" not in name][::3])
def test_an_evil_archive_is_422_and_leaves_nothing(fresh, name):
    """And the answer is plain."""
    answer = fresh.client.post("/v1/code", content=zipped({name: b""}), headers=ZIP)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_code")
    assert not (fresh.settings.storage_path / "code").exists()


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data; boundary=x"}])
def test_another_type_is_415(world, headers):
    """Forms are not parsed at all."""
    assert world.client.post("/v1/code", content=zipped(GOOD), headers=headers).status_code == 415


@pytest.mark.parametrize("is_announced", [True, False])
def test_an_upload_has_a_limit_of_its_own(tmp_path, is_announced):
    """Larger than other bodies, and bounded all the same, with and without Content-Length."""
    with running(tmp_path, max_body_bytes=1024, max_code_bytes=4096) as world:
        content = tar_gz({"a": bytes(4096)}) + bytes(2000)
        assert 1024 < len(content) < 4096
        assert world.client.post("/v1/code", content=content, headers=TAR_GZ).status_code == 201
        too_much = bytes(4097)
        answer = world.client.post("/v1/code", content=too_much if is_announced else iter([too_much]), headers=TAR_GZ)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert world.client.post("/v1/jobs", content=bytes(1025), headers={"Content-Type": "application/json"}).status_code == 413


def test_two_uploads_of_the_same_at_once_are_one(fresh):
    """Whoever is first makes it, and the other one gets it."""
    from service.bundles import ZIP as MEDIA_TYPE
    from service.bundles import store_bundle

    async def both():
        upload = lambda: store_bundle(fresh.store, fresh.client.app.state.context.storage, zipped(GOOD), MEDIA_TYPE, "default")  # noqa: E731
        return await asyncio.gather(upload(), upload())

    (first, is_new), (second, is_new_too) = fresh.call(both)
    assert first.id == second.id
    assert is_new != is_new_too
