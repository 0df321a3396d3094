"""Connections that break at any byte, of the request or of the answer: under one Idempotency-Key it is one job, whatever I saw of it."""

import random
from urllib.parse import urlsplit

import pytest

from service.client import Client
from service.client.patience import Patience
from tests.support.cutting_proxy import cutting_proxy
from tests.support.live_service import SPEC

QUICK = Patience(tries=3, first_wait_s=0.001, longest_wait_s=0.01)
NUM_CUTS = 12


@pytest.fixture(scope="module")
def proxy(service):
    """The way to the service."""
    with cutting_proxy(urlsplit(service.url).port) as proxy:
        yield proxy


def _submit(proxy, service, name):
    with Client(proxy.url, service.token, patience=QUICK) as client:
        return client.submit(SPEC | {"name": name}, idempotency_key=name)["id"]


def _jobs(service):
    with Client(service.url, service.token) as client:
        return list(client.jobs())


@pytest.mark.parametrize("way", ["request", "answer"])
def test_a_submission_whose_connection_breaks_anywhere_is_one_job(proxy, service, way):
    """At the first byte, at the last, and at random ones between: the client tries again, and there is one job."""
    _submit(proxy, service, f"whole-{way}")
    length = proxy.passed[way == "answer"]
    assert length > 100
    cuts = [0, 1, length - 1, length, *random.Random(0).sample(range(2, length - 1), NUM_CUTS - 4)]
    answered = {}
    for cut in cuts:
        proxy.cut_next(**{way: cut})
        answered[f"{way}-{cut}"] = _submit(proxy, service, f"{way}-{cut}")
    made = [(job["name"], job["id"]) for job in _jobs(service) if job["name"].startswith(f"{way}-")]
    assert sorted(made) == sorted(answered.items())


def test_without_a_second_try_the_job_of_a_lost_answer_is_there(proxy, service):
    """The proxy does cut: who does not try again sees an error, though the job was made. The test above can fail."""
    proxy.cut_next(answer=20)
    with Client(proxy.url, service.token, patience=Patience(tries=1)) as client, pytest.raises(Exception, match="no service answers"):
        client.submit(SPEC | {"name": "once"}, idempotency_key="once")
    assert [job["name"] for job in _jobs(service)].count("once") == 1


def test_a_comparison_whose_answer_is_lost_is_made_once(proxy, service):
    """Its variants too."""
    made = []
    for cut in (0, 10, 500):
        proxy.cut_next(answer=cut)
        with Client(proxy.url, service.token, patience=QUICK) as client:
            made.append(client.compare(SPEC, ["batch_norm", "sync_bn"], idempotency_key=f"c{cut}")["id"])
    with Client(service.url, service.token) as client:
        assert [one["id"] for one in client.comparisons()] == made[::-1]
