"""Schemathesis over the whole OpenAPI document: requests that fit it and requests that do not. No 5xx, no hang, nothing undocumented.

`test_contract` beside it sends junk of our own choosing; here the document itself says what is sent. And hypothesis over the parsers that
requests meet before any route: ranges, cursors, idempotency keys, specs.
"""

import warnings

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.api.predictions import IMAGES
from service.api.ranges import slice_of
from service.errors import RangeError
from tests.service.api.test_contract import ROUTES
from tests.service.api.world import BASE_URL, running
from tests.service.store.ranks import SPEC, metrics
from worker.contract import SpecError, parse_spec

with warnings.catch_warnings():
    # They warn about what they import.
    warnings.simplefilter("ignore")
    import requests
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi import checks

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
MAX_EXAMPLES = 16
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@schemathesis.serializer("application/zip", "application/gzip", *IMAGES)
def _as_bytes(_context, value):
    return {"data": value if isinstance(value, bytes) else repr(value).encode()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One application, a job in it that runs, and the document."""
    with running(tmp_path_factory.mktemp("home"), max_requests_per_s=1e6) as world:
        job_id = world.start()
        world.say(job_id, 0, metrics(1, 1, train_loss=1.0))
        world.checkpoint(job_id, 10, seq=2)
        document = world.client.get("/openapi.json").json()
        yield world, job_id, schemathesis.openapi.from_dict(document)


@pytest.mark.parametrize("route", ROUTES)
def test_whatever_the_document_leads_to_is_answered_as_it_says(shared, route):
    """Half of the requests fit the document, half do not; half are about a job that is there."""
    world, job_id, schema = shared
    method, path = route.split()
    operation = schema[path][method]
    known = {"job_id": job_id, "step": "10", "name": "model.safetensors"}

    @settings(
        max_examples=MAX_EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET, phases=[Phase.generate]
    )
    @given(_cases(operation), st.booleans())
    def holds(case, is_known):
        if is_known:
            case.path_parameters |= {name: known[name] for name in case.path_parameters if name in known}
        request = requests.Request(**case.as_transport_kwargs(base_url=BASE_URL)).prepare()
        # The document describes a client with a token; what others get is in `test_access`.
        headers = {name: value for name, value in request.headers.items() if name.lower() != "authorization"}
        case.validate_response(world.client.request(request.method, request.url, headers=headers, content=request.body), checks=CHECKS)

    holds()


def _cases(operation):
    return st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)))


@settings(max_examples=150, deadline=None)
@given(
    st.text("bytes=0123456789-, ;x", max_size=30) | st.from_regex(r"\A(bytes|items)=[0-9]{0,30}-[0-9]{0,30}(,[0-9]{0,9}-)*\Z"),
    st.integers(0, 2**40),
)
def test_any_range_is_a_part_of_the_file_or_refused(header, size):
    """Never more than the file, never nothing but an error of ours."""
    try:
        chosen = slice_of({"range": header}, '"tag"', size)
    except RangeError:
        return
    assert 0 <= chosen.start <= chosen.end <= size
    assert chosen.status in {200, 206}
    assert chosen.status == 200 or chosen.start < chosen.end


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_VALUES = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3), max_leaves=10
)
_KEYS = st.sampled_from(
    ["name", "seed", "task", "model", "norm", "data", "batch_size", "optimizer", "resources", "checkpoint", "labels", "code"]
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(_KEYS | st.text(max_size=8), _VALUES | st.dictionaries(st.sampled_from(["name", "args", "kind"]), _VALUES), max_size=4)
)
def test_any_document_is_a_spec_or_refused_in_words(changes):
    """And a spec that was accepted is accepted again as it was resolved."""
    try:
        spec = parse_spec(SPEC | changes)
    except SpecError as error:
        problems = error.problems
    else:
        problems = ()
        assert parse_spec(spec.model_dump(mode="json")) == spec
    assert all(problem.expected and problem.remedy for problem in problems)


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(st.text(max_size=300), st.text(max_size=60))
def test_any_idempotency_key_and_any_cursor_is_taken_or_refused(shared, key, cursor):
    """Headers and queries of any characters that can be sent."""
    world = shared[0]
    answer = world.client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": key.encode()})
    assert answer.status_code in {201, 400, 422}, answer.text
    for path in ("/v1/jobs", "/v1/queue", "/v1/tokens", f"/v1/jobs/{shared[1]}/events", f"/v1/jobs/{shared[1]}/checkpoints"):
        assert world.client.get(path, params={"after": cursor}).status_code in {200, 422}
