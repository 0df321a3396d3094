"""Who may do what: every route of the document, tried with every kind of identity. A new route is among them by itself."""

import functools
from typing import Any

import pytest
from fastapi import APIRouter

from service.api.description import describe
from service.app import create_app
from service.limits import RequestRates
from service.scopes import Scope
from service.settings import Settings
from tests.service.api.identities import OTHER, bearer, strangers, token
from tests.service.api.world import World
from tests.service.store.ranks import SPEC
from tests.support.archives import GOOD, zipped

TOKEN = "tok_01ARZ3NDEKTSV4RRFFQ69G5FAV"


def declared(document: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Return the scopes of each route of the API."""
    return {
        (method.upper(), path): [scope for scheme in operation.get("security", [{}]) for scope in scheme.get("HTTPBearer", [])]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/v1/")
    }


@pytest.fixture
def routes(world):
    """The routes and their scopes."""
    return declared(world.client.get("/openapi.json").json())


def _ask(world: World, route: tuple[str, str], headers: dict[str, str]) -> Any:
    """Send a request for something that belongs to the project `default`; every request has a job of its own."""
    method, template = route
    home = world.client.headers.pop("Authorization")
    try:
        path = template.format(
            job_id=_job(world, home) if "{job_id}" in template else "",
            comparison_id=_comparison(world, home) if "{comparison_id}" in template else "",
            step="latest",
            name="model.safetensors",
            token_id=TOKEN,
            code_id=_uploaded(world, home) if "{code_id}" in template else "",
        )
        return world.client.request(method, path, headers=headers)
    finally:
        world.client.headers["Authorization"] = home


def _job(world: World, authorization: str) -> str:
    return world.client.post("/v1/jobs", json=SPEC, headers={"Authorization": authorization}).json()["id"]


def _uploaded(world: World, authorization: str) -> str:
    headers = {"Authorization": authorization, "Content-Type": "application/zip"}
    return world.client.post("/v1/code", content=zipped(GOOD), headers=headers).json()["id"]


def _comparison(world: World, authorization: str) -> str:
    ask = {"spec": SPEC, "values": ["sync_bn", "group_norm"]}
    return world.client.post("/v1/comparisons", json=ask, headers={"Authorization": authorization}).json()["id"]


def _code(answer: Any) -> str | None:
    return answer.json()["code"] if answer.content and answer.status_code >= 400 else None


def test_every_route_declares_one_scope(routes):
    """And the document says which."""
    assert len(routes) > 20
    assert {route: scopes for route, scopes in routes.items() if len(scopes) != 1 or scopes[0] not in set(Scope)} == {}


def test_a_route_without_a_scope_is_found(tmp_path):
    """The test above can fail."""
    app, planted = create_app(Settings(home=tmp_path)), APIRouter()
    planted.add_api_route("/v1/planted", lambda: None)
    app.include_router(planted)

    assert declared(describe(app))["GET", "/v1/planted"] == []


def test_who_is_not_admitted_gets_401_everywhere(world, routes):
    """No token, an unknown one, a revoked one, an expired one: not told apart."""
    answers = {}
    for name, headers in strangers(world).items():
        for route in routes:
            answer = _ask(world, route, headers)
            answers[answer.status_code, _code(answer) if route[0] != "HEAD" else "unauthorized"] = (name, route)
    assert list(answers) == [(401, "unauthorized")]


@pytest.mark.parametrize("scope", [Scope.READ, Scope.SUBMIT, Scope.CODE])
def test_a_scope_opens_its_routes_and_no_other(world, routes, scope):
    """A token with one scope, of the project that owns everything."""
    headers = token(world, scope)
    for route, [needed] in routes.items():
        answer = _ask(world, route, headers)
        if needed == scope:
            assert answer.status_code not in {401, 403}, (route, answer.text)
            assert _code(answer) != "job_not_found", route
        else:
            assert answer.status_code == 403, (route, answer.text)
            assert route[0] == "HEAD" or _code(answer) == "scope_missing"


def test_another_project_sees_no_job(world, routes):
    """Not even that there is one: the answer is that for an id that never was."""
    headers = token(world, Scope.READ, Scope.SUBMIT, Scope.CODE, project=OTHER)
    tried = 0
    for route, [needed] in routes.items():
        answer = _ask(world, route, headers)
        if "{job_id}" in route[1] or "{comparison_id}" in route[1]:
            tried += 1
            assert answer.status_code == 404, (route, answer.text)
            assert route[0] == "HEAD" or _code(answer) == ("job_not_found" if "{job_id}" in route[1] else "comparison_not_found")
        else:
            assert (answer.status_code == 403) is (needed == Scope.ADMIN), (route, answer.text)
    assert tried > 12


def test_an_admin_of_another_project_does_everything(world, routes):
    """Operators look after all."""
    headers = token(world, Scope.ADMIN, project=OTHER)
    for route in routes:
        answer = _ask(world, route, headers)
        assert answer.status_code not in {401, 403}, (route, answer.text)
        assert _code(answer) != "job_not_found", route


def test_a_foreign_job_and_none_at_all_are_answered_alike(world):
    """To the letter, but for the id."""
    headers = token(world, Scope.READ, project=OTHER)
    foreign, none = world.submit()["id"], "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    answers = [world.client.get(f"/v1/jobs/{job_id}", headers=headers).text.replace(job_id, "ID") for job_id in (foreign, none)]

    assert answers[0] == answers[1]


def test_lists_hold_only_what_the_project_owns(fresh):
    """Jobs and the queue; places in the queue are counted over all."""
    fresh.submit(name="ours")
    headers = token(fresh, Scope.READ, Scope.SUBMIT, project=OTHER)
    theirs = fresh.client.post("/v1/jobs", json=SPEC | {"name": "theirs"}, headers=headers).json()
    get = lambda path, headers=None: fresh.client.get(path, headers=headers).json()["data"]  # noqa: E731

    assert theirs["project"] == OTHER
    assert [job["name"] for job in get("/v1/jobs", headers)] == ["theirs"]
    assert [(job["name"], job["position"]) for job in get("/v1/queue", headers)] == [("theirs", 2)]
    assert [job["name"] for job in get("/v1/jobs")] == ["theirs", "ours"]
    assert len(get("/v1/queue")) == 2


def test_the_gangs_of_other_projects_are_not_shown(fresh, monkeypatch):
    """Their ids are nobody else's business."""
    ours = fresh.submit()["id"]
    headers = token(fresh, Scope.READ, Scope.SUBMIT, project=OTHER)
    theirs = fresh.client.post("/v1/jobs", json=SPEC, headers=headers).json()["id"]

    class Controller:
        async def view(self):
            return {"is_connected": True, "message": "", "nodes": [], "room": None, "gangs": [ours, theirs]}

    context = fresh.client.app.state.context
    monkeypatch.setitem(vars(context), "controller", Controller())
    assert fresh.client.get("/v1/cluster", headers=headers).json()["gangs"] == [theirs]
    assert fresh.client.get("/v1/cluster").json()["gangs"] == [ours, theirs]


def test_an_idempotency_key_is_its_projects_own(fresh):
    """Two projects that choose the same key do not get each other's job."""
    headers = token(fresh, Scope.READ, Scope.SUBMIT, project=OTHER)
    post = lambda **more: fresh.client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"} | more)  # noqa: E731
    ours, theirs = post(), post(**headers)

    assert (ours.status_code, theirs.status_code) == (201, 201)
    assert ours.json()["id"] != theirs.json()["id"]
    assert post(**headers).headers["idempotent-replayed"] == "true"
    assert post(**headers).json()["id"] == theirs.json()["id"]


def test_a_checkpoint_of_another_project_cannot_be_started_from(world):
    """It is not there, for them."""
    job_id = world.start()
    world.checkpoint(job_id, 10, seq=1)
    body = SPEC | {"initialize_from": f"{job_id}/checkpoints/latest"}
    headers = token(world, Scope.SUBMIT, project=OTHER)

    answer = world.client.post("/v1/jobs", json=body, headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, "initialize_from")
    assert world.client.post("/v1/jobs", json=body, headers=token(world, Scope.SUBMIT)).status_code == 201


def test_no_scope_is_taken_from_a_cookie_or_a_query(world):
    """A browser sends a cookie by itself, and a query ends in logs and histories."""
    secret = world.client.headers.pop("Authorization").removeprefix("Bearer ")
    for query, headers in (
        ({"token": secret, "access_token": secret}, {}),
        ({}, {"Cookie": f"token={secret}; Authorization=Bearer {secret}"}),
    ):
        assert world.client.get("/v1/jobs", params=query, headers=headers).status_code == 401
    assert world.client.get("/v1/jobs", headers=bearer(secret)).status_code == 200


def test_requests_of_one_token_are_bounded_and_the_others_go_on(tmp_path, monkeypatch):
    """429 says when to come back; each request counts once, whatever depends on it."""
    from tests.service.api.world import running

    # Time stands still: on a busy machine requests come slower than the bound.
    monkeypatch.setattr("service.app.RequestRates", functools.partial(RequestRates, clock=lambda: 0.0))
    with running(tmp_path, max_requests_per_s=2) as world:
        headers = token(world, Scope.READ, Scope.SUBMIT)
        statuses = [world.client.get("/v1/norms", headers=headers).status_code for _ in range(11)]
        assert statuses[:10] == [200] * 10
        refused = world.client.get("/v1/norms", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert int(refused.headers["retry-after"]) >= 1
        assert world.client.get("/v1/norms").status_code == 200
